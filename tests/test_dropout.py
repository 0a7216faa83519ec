"""Dropout: what is dropped, where, that nothing else decides it, and that nothing is without it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attention_reference
from attention_reference import SEGMENTS, assert_close, computed
from family_reference import Tensors, blocks, layer_norm, y_heads
from hf_parity import TOLERANCE, libraries, pair, quickly, tokens
from pretrain import sharding
from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, Plain
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.drop import Noise, threefry
from pretrain.kernels.fused import Fused
from pretrain.kernels.mask import Causal, Mask
from pretrain.kernels.splash import Splash
from pretrain.models.dropout import SITES, Dropout, Drops
from pretrain.models.model import Decoder
from pretrain.models.stack import Recompute, Remat
from pretrain.optim import AdamW
from pretrain.parallel.ring import Ring
from pretrain.schedules import Constant
from pretrain.sharding import Rules
from pretrain.step import DROPOUT
from tiny import (
    FP32,
    GPT_2,
    GPT_3,
    ONE,
    OPT_POST,
    YALM,
    Z_LOSS,
    Axes,
    B,
    T,
    Trainer,
    assert_equal,
    assert_same_step,
    first_step,
    host,
    on,
    packed,
    quick,
    run,
    trainer,
)

RATES = Dropout(embedding=0.2, residual=0.3, attention=0.25)
MEGATRON, ALONG_D = Rules(residual_seq=("seq", "tensor")), Rules(residual=("tensor",))
MIXED: Axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))


def dropping(model: Any, rates: Dropout = RATES) -> Any:
    return dataclasses.replace(model, dropout=rates)


DROPPING = run(dropping(GPT_2))


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ((0, 0, 0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 4, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_is_that_of_its_authors(words: tuple[int, ...], want: tuple[int, int]) -> None:
    """The known answers of Random123, "threefry2x32 20"."""
    assert threefry(*(np.array([word], np.uint32) for word in words)) == want


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_noise_is_that_of_jax(seed: int) -> None:
    key, noise = jax.random.key(seed), Noise.of(seed)
    assert [noise.high, noise.low] == jax.random.key_data(key).tolist()
    want = jax.vmap(lambda n: jax.random.key_data(jax.random.fold_in(key, n)))(jnp.arange(5))
    got = noise.fold(jnp.arange(5))
    np.testing.assert_array_equal(np.stack([got.high, got.low], 1), want)


Words = tuple[np.ndarray, np.ndarray]  # of keys


def fold(words: Words, number: Any, at: int = 0) -> Words:
    """The keys of a number, or of each of a vector, whose dim is added behind."""
    number = np.asarray(number, np.uint32)
    high, low = (np.expand_dims(x, tuple(range(-number.ndim, 0))) for x in words)
    return threefry(high, low, np.uint32(at), number)


def mixed(x: np.ndarray) -> np.ndarray:
    """In 64 bits, with the remainder: as it is written in C."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def weights(
    rate: float, site: str, layer: tuple[int, ...], count: int, *,
    heads: int = 0, rows: int = B, length: int = T, seed: int = 0, step: int = 0,
) -> np.ndarray:  # fmt: skip
    """What dropout multiplies [rows, length, count] by, or [rows, heads, length, count], in numpy."""
    key = np.array([seed >> 32], np.uint32), np.array([seed % 2**32], np.uint32)
    [high], [low] = fold(fold(key, step, DROPOUT), np.arange(rows))
    words = high, low
    for number in layer:
        words = fold(words, number)
    words = fold(words, np.arange(length), SITES.index(site))
    if heads:
        high, low = fold(words, np.arange(heads))
        words = high.swapaxes(1, 2), low.swapaxes(1, 2)
    high, low = (x[..., None].astype(np.int64) for x in words)
    bits = mixed((mixed(np.arange(count) ^ high) + low) % 2**32)
    return np.where(bits / 2**32 >= rate, 1 / (1 - rate), 0.0)


LENGTH, FEATURES = 128, 256  # of what the statistics are taken of


@functools.cache
def mask(
    rate: float = 0.1, step: int = 0, layer: int = 0, site: str = "attention", seed: int = 0
) -> np.ndarray:
    """Weights of [B, LENGTH, FEATURES] activations, as a layer has them."""

    def ones(step: jax.Array) -> jax.Array:
        noise = Noise.of(seed).fold(step, DROPOUT).fold(jnp.arange(B))
        drops = Drops(Dropout(residual=rate), noise).layer(layer)
        return drops(jnp.ones((B, LENGTH, FEATURES)), site)

    with on(), quickly():
        return np.asarray(jax.jit(ones)(step))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_the_share_that_is_dropped_is_the_rate_and_the_expectation_stays(rate: float) -> None:
    """To 5 standard deviations of as many independent draws; what is kept is exactly 1 / (1 - rate)."""
    w = mask(rate)
    assert set(np.unique(w)) == {np.float32(0), np.float32(1 / (1 - rate))}
    deviation = math.sqrt(rate * (1 - rate) / w.size)
    assert abs((w == 0).mean() - rate) < 5 * deviation
    assert abs(w.mean(dtype=np.float64) - 1) < 5 * deviation / (1 - rate)
    for axis in range(3):  # no row, position or feature is dropped more often than others
        shares = (np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1) == 0).mean(1)
        assert abs(shares - rate).max() < 5 * deviation * math.sqrt(w.shape[axis])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard deviations of that of independent draws."""
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * math.sqrt(a.size)


def test_rows_positions_features_steps_layers_sites_and_seeds_draw_for_themselves() -> None:
    w = mask()
    for axis, by in itertools.product(range(3), (1, 2, 4)):
        moved = np.roll(w, by, axis)
        assert correlation(w, moved) < 5, (axis, by)
    others = [mask(step=1), mask(layer=1), mask(site="mlp"), mask(seed=1), mask(seed=2**32)]
    drawn = [w, *others]
    for a, b in itertools.combinations(drawn, 2):
        assert correlation(a, b) < 5
    np.testing.assert_array_equal(w, mask.__wrapped__())


def test_a_mask_is_that_of_the_numpy_reference() -> None:
    for layer, site, step in ((0, "attention", 0), (3, "mlp", 10**6)):
        want = weights(0.1, site, (layer,), FEATURES, length=LENGTH, step=step)
        np.testing.assert_allclose(mask(step=step, layer=layer, site=site), want, rtol=1e-6)


def test_in_bfloat16_what_is_kept_is_not_scaled_by_a_rounded_number() -> None:
    """1 / 0.9 rounds to 1.109375 in 8 bits: all sums would be too small by 1.6 per mille."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, LENGTH, FEATURES)), jnp.bfloat16)
    drops = Drops(Dropout(residual=0.1), Noise.of(0).fold(jnp.arange(B)))
    with on(), quickly():
        got = jax.jit(lambda x: drops(x, "mlp"))(x)
    assert got.dtype == jnp.bfloat16
    whole, some = (np.asarray(a, np.float64) for a in (x, got))
    kept = some != 0
    assert abs((some[kept] / whole[kept]).mean() * 0.9 - 1) < 2e-4


# --- the attention kernels --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A kernel as a layer calls it in training."""

    kernel: Attention
    rate: float = 0.3

    def __call__(self, q: Any, k: Any, v: Any, segments: Any, mask: Mask) -> jax.Array:
        rows = jax.lax.broadcasted_iota(
            jnp.uint32, q.shape[:1], 0, out_sharding=sharding.spec("batch")
        )
        noise = Noise.of(0).fold(0, DROPOUT).fold(rows)
        drop = Drops(Dropout(attention=self.rate), noise).probabilities(q)
        assert drop is not None
        return self.kernel(q, k, v, segments, mask, drop)


@functools.cache
def expected(K: int, window: int | None) -> tuple[np.ndarray, ...]:
    """a, dq, dk, dv of softmax(q k^T) * weights v, in numpy; the normaliser counts all of a row."""
    q, k, v, da = (x.astype(np.float64) for x in attention_reference.inputs(K))
    rows, length, N, H = q.shape
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    i, j = np.ogrid[:length, :length]
    sees = (j <= i) & (i - j < (window or length)) & (SEGMENTS[:, :, None] == SEGMENTS[:, None])
    s = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(H)
    p = np.where(sees[:, None], np.exp(s), 0)
    p /= p.sum(-1, keepdims=True)
    w = weights(0.3, "probabilities", (), length, heads=N, rows=rows, length=length)
    a = np.einsum("bnts,bsnh->btnh", p * w, v)
    dv = np.einsum("bnts,btnh->bsnh", p * w, da)
    dp = w * np.einsum("btnh,bsnh->bnts", da, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / math.sqrt(H)
    dq, dk = np.einsum("bnts,bsnh->btnh", ds, k), np.einsum("bnts,btnh->bsnh", ds, q)
    dk, dv = (x.reshape(rows, length, K, N // K, H).sum(3) for x in (dk, dv))
    return a, dq, dk, dv


@pytest.mark.parametrize(
    ("kernel", "axes", "K", "window"),
    [
        (Plain(parts=3), ONE, 2, 5),
        (Plain(), (("fsdp", 2), ("seq", 2), ("tensor", 2)), 1, None),
        (Fused(elsewhere=Blockwise(block=4)), ONE, 1, None),
        (Blockwise(block=2), (("data", 2), ("seq", 2), ("tensor", 2)), 2, 5),
        (Ring(block=2), (("seq", 4), ("tensor", 2)), 2, None),
        (Ring(), (("data", 2), ("seq", 4)), 4, 6),
    ],
)
def test_a_kernel_drops_probabilities_and_their_gradients_as_the_numpy_reference(
    kernel: Attention, axes: Axes, K: int, window: int | None
) -> None:
    case = {"K": K, "window": window, "segmented": True}
    with quickly():
        got = computed(Dropped(kernel), axes or attention_reference.ONE, **case)  # type: ignore[arg-type]  # called as one
    assert_close(got, expected(K, window))


def test_a_kernel_that_cannot_drop_is_a_mistake_that_names_the_fix() -> None:
    demand = Demand(
        positions=256, heads=4, kv_heads=4, head_dim=128, mask=Causal(), segments=False,
        dtype=jnp.bfloat16, platform="tpu", dropout=0.1,
    )  # fmt: skip
    words = r"Splash attention drops no probabilities and model.dropout.attention is 0.1: set "
    with pytest.raises(Mistake, match=words):
        Splash().check(demand)
    Splash().check(dataclasses.replace(demand, dropout=0.0))
    for kernel in (Plain(), Blockwise(), Ring(), Fused()):
        kernel.check(dataclasses.replace(demand, platform="cpu"))
    for kernel in (Ring(alone=Splash()), Fused()):
        with pytest.raises(Mistake, match=words):
            kernel.check(demand)
    compute = dataclasses.replace(FP32, attention=Splash())
    long = dataclasses.replace(dropping(GPT_2, Dropout(attention=0.1)), context=128)
    splash = dataclasses.replace(run(long, compute=compute), seq_len=128)
    with pytest.raises(Mistake, match=words):
        splash.check_kernel(sharding.Mesh().sizes(1), "tpu")


# --- the step ---------------------------------------------------------------------------------------


def losses(model: Any, params: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
    """log(Z) and -log p(target) of each token of `packed()` as a train step has them, in float64."""
    p = {name: np.asarray(x, np.float64) for name, x in host(params).items()}
    batch, rates, P = packed(), model.dropout, len(model.masks)
    sees = np.tril(batch["segments_BT"][:, :, None] == batch["segments_BT"][:, None])
    D = model.d_model
    x = p["embedding/table"][batch["tokens_BT"]] + p["positions/table"][batch["positions_BT"]]
    x = x * weights(rates.embedding, "embedding", (), D, step=step)
    for number, b in enumerate(blocks(model, p)):
        layer = (number // P, number % P) if P > 1 else (number,)
        window = model.windows[number % P]
        near = sees if window is None else sees & ~np.tri(T, T, -window, bool)
        w = weights(rates.attention, "probabilities", layer, T, heads=model.heads, step=step)
        a = attended(
            layer_norm(x, 1e-5) * b["attention_norm/gain"] + b["attention_norm/bias"], b, near, w
        )
        x = x + a * weights(rates.residual, "attention", layer, D, step=step)
        u = layer_norm(x, 1e-5) * b["mlp_norm/gain"] + b["mlp_norm/bias"]
        u = u @ b["mlp/up/kernel"] + b["mlp/up/bias"]
        u = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        m = u @ b["mlp/down/kernel"] + b["mlp/down/bias"]
        x = x + m * weights(rates.residual, "mlp", layer, D, step=step)
    x = layer_norm(x, 1e-5) * p["norm/gain"] + p["norm/bias"]
    logits = x @ p["embedding/table"][: model.vocab].T
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z, log_z - np.take_along_axis(logits, batch["targets_BT"][..., None], -1)[..., 0]


def attended(y: np.ndarray, b: Tensors, sees: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Attention with its probabilities, once they are normalised, times w."""
    names = ("query", "key", "value")
    q, k, v = (y_heads(y, b, name) + b[f"attention/{name}/bias"] for name in names)
    s = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
    p = np.where(sees[:, None], np.exp(s), 0)
    a = np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True) * w, v)
    return np.einsum("btnh,nhd->btd", a, b["attention/out/kernel"]) + b["attention/out/bias"]


@pytest.mark.parametrize(("model", "step"), [(GPT_2, 0), (GPT_2, 3), (GPT_3, 1)])
def test_a_train_step_loses_what_the_numpy_reference_does_with_the_masks_of_its_step(
    model: Any, step: int
) -> None:
    """GPT-3's two kinds of blocks by turns draw for themselves."""
    given = run(dropping(model), seed=5)
    train = trainer(given)
    like = train.program.state.step
    where = jax.device_put(np.int32(step), like.sharding)
    state = dataclasses.replace(train.state(), step=where)
    params, valid = jax.device_get(state.params), packed()["weights_BT"] == 1
    with mock.patch.dict(weights.__kwdefaults__, seed=5):
        log_z, loss = losses(given.model, params, step)
    _, told = train(state, packed())
    np.testing.assert_allclose(told.metrics["loss"], loss[valid].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        told.metrics["z_loss"], Z_LOSS * (log_z[valid] ** 2).mean(), rtol=1e-6
    )
    assert abs(told.metrics["loss"] - first_step(run(model)).metrics["loss"]) > 1e-3


def test_the_gradient_is_that_of_what_is_kept() -> None:
    """Along one direction, against the float64 reference's difference: good to about 1e-5."""
    params = jax.device_get(trainer(DROPPING).state().params)
    draw, eps = np.random.default_rng(1).normal, 1e-5
    way = jax.tree.map(lambda x: x * draw(size=x.shape), params)
    valid = packed()["weights_BT"] == 1

    def total(by: float) -> float:
        moved = jax.tree.map(lambda x, d: x.astype(np.float64) + by * d, params, way)
        log_z, loss = losses(DROPPING.model, moved, 0)
        return (loss + Z_LOSS * log_z**2)[valid].mean()

    slope = (total(eps) - total(-eps)) / (2 * eps)
    grads = first_step(DROPPING).grads
    got = sum(np.vdot(grads[name], d) for name, d in host(way).items())
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(got, slope, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes", "rules", "attention"),
    [
        (GPT_2, MIXED, MEGATRON, Blockwise(block=4)),
        (GPT_2, (("seq", 4), ("tensor", 2)), ALONG_D, Ring(block=2)),
        (OPT_POST, MIXED, MEGATRON, Plain()),
        (YALM, MIXED, MEGATRON, Plain()),
    ],
)
def test_every_mesh_drops_what_one_device_does(
    model: Any, axes: Axes, rules: Rules, attention: Attention
) -> None:
    compute = dataclasses.replace(FP32, attention=attention)
    got = first_step(run(dropping(model), rules=rules, compute=compute), axes)
    assert_same_step(got, first_step(run(dropping(model))))


def test_microbatches_drop_what_one_batch_does() -> None:
    given = dataclasses.replace(DROPPING, microbatches=4)
    assert_same_step(first_step(given, (("fsdp", 2),)), first_step(DROPPING))


@pytest.mark.parametrize("remat", [Remat(), Recompute()])
def test_what_is_computed_again_for_the_gradient_drops_the_same(remat: Remat) -> None:
    given = run(dropping(GPT_2), compute=dataclasses.replace(FP32, remat=remat))
    assert_same_step(first_step(given), first_step(DROPPING))


def test_a_run_that_goes_on_from_its_state_drops_what_it_would_have() -> None:
    train = trainer(run(dropping(GPT_2), optim=AdamW(peak_lr=1e-2, schedule=Constant())))
    state, told = train.state(), []
    for _ in range(3):
        kept = jax.device_get(state)
        state, step = train(state, packed())
        told.append(float(step.metrics["loss"]))
    again = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), kept, train.program.state
    )
    again, step = train(again, packed())
    assert float(step.metrics["loss"]) == told[-1]
    assert_equal(host(again.params), host(state.params))


def test_every_step_draws_anew() -> None:
    """The optimizer `Keep` moves nothing, so that the batch and the parameters are the same."""
    train = trainer(DROPPING)
    state, told = train.state(), set()
    for _ in range(3):
        state, step = train(state, packed())
        told.add(float(step.metrics["loss"]))
    assert len(told) == 3 and max(told) - min(told) < 0.5


# --- nothing ----------------------------------------------------------------------------------------


def test_evaluation_drops_nothing() -> None:
    """To the bit; so do decoding and generation, which take no noise either."""
    sums = []
    for train in (trainer(DROPPING), trainer(run(GPT_2))):
        params, batch = train.state().params, train.put(packed())
        with on():
            sums.append(quick(train.program.eval_step, params, batch)(params, batch))
    assert_equal(*({name: np.asarray(x) for name, x in told.items()} for told in sums))


def traced(train: Trainer) -> str:
    with on():
        program = train.program
        return str(program.train_step.trace(program.state, program.batch(B, T, True)).jaxpr)


def test_a_model_that_drops_nothing_computes_no_random_numbers() -> None:
    """They are the only unsigned integers of a step. A rate of 0 beside others is as good as none."""
    assert "u32" not in traced(trainer(run(GPT_2)))
    assert "u32" in traced(trainer(DROPPING))
    both, one = (
        traced(Trainer(run(dropping(GPT_2, rates)), ONE, masked=True)).count("shift_left")
        for rates in (Dropout(residual=0.1, attention=0.1), Dropout(residual=0.1))
    )
    assert 0 < one < both


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("name", ["embedding", "residual", "attention"])
def test_a_rate_that_is_none_is_a_mistake(name: str, rate: float) -> None:
    with pytest.raises(Mistake, match=rf"model\.dropout\.{name} is {rate}: make it at least 0"):
        run(dropping(GPT_2, Dropout(**{name: rate}))).check()


# --- the families -----------------------------------------------------------------------------------

GPT = {
    "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 12,
    "embd_pdrop": 0.2, "resid_pdrop": 0.3, "attn_pdrop": 0.25,
}  # fmt: skip
FACEBOOK = {
    "hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 40, "num_attention_heads": 3,
    "max_position_embeddings": 12, "dropout": 0.3, "attention_dropout": 0.25,
}  # fmt: skip
EMBEDDED, BARE = RATES, dataclasses.replace(RATES, embedding=0.0)


@pytest.mark.hf
@pytest.mark.parametrize(
    ("model_type", "config", "rates"),
    [
        ("openai-gpt", GPT, EMBEDDED),
        ("gpt2", GPT, EMBEDDED),
        ("opt", {**FACEBOOK, "word_embed_proj_dim": 24}, BARE),
        ("opt", {**FACEBOOK, "word_embed_proj_dim": 20, "do_layer_norm_before": False}, BARE),
        (
            "gpt_neo",
            {
                "hidden_size": 24, "num_layers": 2, "num_heads": 3, "max_position_embeddings": 12,
                "attention_types": [[["global", "local"], 1]], "window_size": 5,
                "embed_dropout": 0.2, "resid_dropout": 0.3, "attention_dropout": 0.25,
            },
            EMBEDDED,
        ),
        (
            "bloom",
            {
                "hidden_size": 24, "n_layer": 2, "n_head": 3,
                "hidden_dropout": 0.3, "attention_dropout": 0.25,
            },
            BARE,
        ),
    ],
)  # fmt: skip
def test_a_family_drops_where_transformers_does(
    model_type: str, config: dict[str, Any], rates: Dropout, tmp_path: Path
) -> None:
    """In training, with our masks in the place of its own: one call after another."""
    torch, _ = libraries()
    made = pair(model_type, tmp_path, **config)
    node, ids = made.ours.node, tokens(length=12)
    assert isinstance(node, Decoder) and node.dropout == rates

    def masks() -> Iterator[np.ndarray]:
        of = functools.partial(weights, rows=2, length=12)
        P = len(node.masks)
        if rates.embedding:
            yield of(rates.embedding, "embedding", (), node.d_model)
        for number in range(node.layers):
            layer = (number // P, number % P) if P > 1 else (number,)
            yield of(rates.attention, "probabilities", layer, 12, heads=3)
            for site in ("attention", "mlp"):
                yield of(rates.residual, site, layer, node.d_model)

    given = masks()

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        w = next(given)
        assert training and w.size == x.numel() and w.shape[-1] == x.shape[-1]
        assert w.max() == 1 / (1 - p)
        return x * torch.tensor(w, dtype=x.dtype).reshape(x.shape)

    with mock.patch.object(torch.nn.functional, "dropout", dropout), torch.no_grad():
        want = made.theirs.train().base_model(torch.tensor(ids))[0].numpy()
    assert next(given, None) is None
    model = made.ours
    with quickly(), sharding.use(model.mesh, model.rules):

        @jax.jit
        def hidden(params: Any, ids: Any) -> jax.Array:
            noise = Noise.of(0).fold(0, DROPOUT).fold(jnp.arange(2))
            return nnx.merge(model.graph, params).hidden(ids, noise_B=noise)

        got = hidden(model.params, jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)
    assert abs(want - model.hidden(ids)).max() > 0.1
