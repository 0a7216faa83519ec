"""The families against their papers' equations, whom a token can depend on, and decoding by a cache."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from family_reference import drawn, logits
from pretrain.config import Mistake
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.mask import Alibi
from pretrain.models.cache import Cache
from pretrain.models.init import normal
from pretrain.models.layers import RESIDUAL, along
from pretrain.models.model import Compute, Decoder
from pretrain.models.palm import RMSPaLM
from pretrain.models.positions import InterleavedRope, Learned, Rope
from pretrain.program import Program
from pretrain.sharding import spec
from pretrain.tensors import named
from tiny import (
    BLOOM,
    DECODERS,
    FAMILIES,
    FP32,
    GOPHER,
    GPT_2,
    GPT_3,
    GPT_NEO,
    LLAMA,
    MISTRAL,
    MOSAIC,
    ONE,
    OPT_,
    OWN,
    PALM,
    TIED,
    Axes,
    B,
    T,
    V,
    initial,
    on,
    packed,
    quick,
    run,
)

TURNED = [
    dataclasses.replace(PALM, rope=Rope(base=100.0)),
    dataclasses.replace(PALM, rope=InterleavedRope(base=100.0)),
    RMSPaLM(**vars(PALM)),
    RMSPaLM(**vars(dataclasses.replace(PALM, rope=InterleavedRope()))),
    dataclasses.replace(LLAMA, rope=InterleavedRope(base=100.0), norm_eps=0.1),
    MISTRAL,
    TIED,
    GPT_3,
]
DOCUMENTS_BT = np.repeat([[4, 4, 9, 9]], T // 4, axis=1).astype(np.int32)


class Forward:
    """A family with drawn parameters on one device; its functions compiled once for each shape."""

    def __init__(self, model: Decoder, compute: Compute = FP32):
        self.model, self.compute = model, compute
        with on() as mesh:
            program = Program(run(model, compute=compute), mesh)
        self.graph, self.params = program.graph, drawn(program.state.params)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)`."""

        def merged(params: Any, *arguments: Any) -> Any:
            return function(nnx.merge(self.graph, params), *arguments)

        key = function, *(np.shape(x) for x in jax.tree.leaves(arguments))
        with on():
            if key not in self._compiled:
                self._compiled[key] = quick(merged, self.params, *arguments)
            return jax.device_get(self._compiled[key](self.params, *arguments))


forward = functools.cache(Forward)


def logits_and_back(model: Any, tokens: Any, positions: Any, segments: Any, way: Any) -> Any:
    """Logits, and what a change of them along `way` asks of the parameters below the head."""
    graph, params = nnx.split(model)

    def below(params: Any) -> jax.Array:
        hidden = nnx.merge(graph, params).hidden(tokens, positions, segments)
        return model.head()(hidden)

    logits_BTV, back = jax.vjp(below, params)
    return logits_BTV, nnx.to_pure_dict(back(way)[0])


# --- equations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*FAMILIES, *OWN, *TURNED])
def test_a_family_computes_the_equations_of_its_paper(model: Decoder) -> None:
    batch, go = packed(), forward(model)
    names = ("tokens_BT", "positions_BT", "segments_BT")
    arguments = [batch[name] for name in names]
    got, _ = go(logits_and_back, *arguments, np.zeros((B, T, 64), np.float32))
    want = logits(model, go.params, *arguments)
    assert got.dtype == np.float32 and want.std() > 0.1
    np.testing.assert_allclose(got[..., :V], want, rtol=1e-5, atol=1e-5 * want.std())
    assert (got[..., V:] == -1e30).all()


def test_bfloat16_models_give_float32_logits_of_bfloat16_states() -> None:
    def states(model: Any, tokens: Any) -> Any:
        hidden = model.hidden(tokens)
        return hidden, model.head()(hidden)

    hidden, logits_BTV = forward(GPT_2, Compute())(states, packed()["tokens_BT"])
    assert hidden.dtype == jnp.bfloat16 and logits_BTV.dtype == np.float32


@pytest.mark.parametrize("axes", [ONE, (("fsdp", 2), ("seq", 2), ("tensor", 2))])
@pytest.mark.parametrize("rows", [1, 1024])
def test_gradients_of_vectors_and_positions_are_added_in_float32(axes: Axes, rows: int) -> None:
    """In bfloat16 256 + 1 is 256, and a sum of ones ends early."""
    with on(axes):
        graph, table = nnx.split(Learned(nnx.Rngs(0), 4, 8, normal(1.0)))

        def total(gain_D: Any, table: Any, positions_BT: jax.Array) -> jax.Array:
            ones_BTD = jnp.ones((1024, 16, 8), jnp.bfloat16, out_sharding=spec(RESIDUAL))
            y_BTD = nnx.merge(graph, table)(ones_BTD, positions_BT)
            z_BTD = along(ones_BTD, gain_D, jnp.multiply)
            return sum(jnp.sum(x.astype(jnp.float32)) for x in (y_BTD, z_BTD))

        given = nnx.Param(jnp.ones(8)), table, jnp.zeros((rows, 16), jnp.int32)
        gain_D, table = quick(jax.grad(total, argnums=(0, 1)), *given)(*given)
    np.testing.assert_array_equal(gain_D[...], [1024 * 16] * 8)
    np.testing.assert_array_equal(table["table"][...], [[1024 * 16] * 8] + [[0] * 8] * 3)


@pytest.mark.parametrize("model", FAMILIES)
def test_initial_parameters_have_the_spread_of_the_paper_and_no_two_are_alike(
    model: Decoder,
) -> None:
    """PaLM: section 5, kernels N(0, 1 / n_in), embedding N(0, 1). GPT-2: section 2.3 and the code."""
    out = 0.02 / math.sqrt(2 * model.layers) if model is GPT_2 else 0.02
    spread = {"attention/out/kernel": out, "mlp/down/kernel": out, "positions/table": 0.01}
    if model is PALM:
        spread = {
            "embedding/table": 1.0,
            "attention/out/kernel": 64**-0.5,
            "mlp/down/kernel": 48**-0.5,
        }
    assert_spread(model, spread | {"": 32**-0.5 if model is PALM else 0.02})
    values = np.concatenate([x.ravel()[:8] for x in initial(model).values() if x.std()])
    first, second = initial(model)["stack/blocks/attention/query/kernel"]
    assert len(set(values)) == len(values) and not (first == second).any()


def assert_spread(model: Decoder, spread: Mapping[str, float]) -> None:
    """Standard deviations by the first end of a tensor's name that fits; gains are 1 and biases 0."""
    for name, x in initial(model).items():
        if name.endswith(("gain", "bias")):
            assert (x == (1 if name.endswith("gain") else 0)).all()
            continue
        std = next(s for end, s in spread.items() if name.endswith(end))
        np.testing.assert_allclose(x.std(), std, rtol=4 / math.sqrt(2 * x.size), err_msg=name)
        np.testing.assert_allclose(x.mean(), 0, atol=4 * std / math.sqrt(x.size), err_msg=name)


@pytest.mark.parametrize(
    ("model", "out", "others"),
    [
        (BLOOM, 0.0048 / 2, {"": 0.0048}),
        (OPT_, 0.006 / 2, {"": 0.006}),
        (MOSAIC, (2 / 48) ** 0.5 / 2, {"": (2 / 32) ** 0.5}),
    ],
)
def test_initial_parameters_have_the_spread_that_was_published(
    model: Decoder, out: float, others: dict[str, float]
) -> None:
    """What leaves a sublayer starts smaller by sqrt(2 L), which is 2 here."""
    assert_spread(model, {"attention/out/kernel": out, "mlp/down/kernel": out} | others)


def test_gpt_neo_starts_with_the_scale_of_its_logits_in_the_queries() -> None:
    attention = {"query": (32 * 8) ** -0.5, "key": 32**-0.5, "value": 32**-0.5, "out": 32**-0.5}
    spread = {f"attention/{name}/kernel": std for name, std in attention.items()}
    spread |= {"mlp/down/kernel": 0.02 / 2**0.5, "positions/table": 0.01, "": 0.02}
    assert_spread(GPT_NEO, spread)


def test_rope_turns_pairs_so_an_odd_head_is_a_mistake() -> None:
    with pytest.raises(Mistake, match=r"model\.head_dim is 7: rope turns pairs of features"):
        forward(dataclasses.replace(PALM, head_dim=7))(whole, packed()["tokens_BT"])


def test_relative_positions_refuse_a_kernel_whose_logits_they_cannot_change() -> None:
    with pytest.raises(Mistake, match="only Plain attention does that"):
        forward(GOPHER, Compute(attention=Blockwise()))(whole, packed()["tokens_BT"])


def test_alibi_has_the_slopes_of_its_paper() -> None:
    """Section 3: 1/2 ... 1/256 of 8 heads. Six take those of 4, then the odd ones of 8."""
    assert Alibi.of(8).slopes == tuple(0.5**n for n in range(1, 9))
    assert Alibi.of(6).slopes == tuple(0.5**n for n in (2, 4, 6, 8, 1, 3))


# --- whom a token depends on ------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_logits_depend_on_the_earlier_tokens_of_their_document_and_on_nothing_else(
    model: Decoder,
) -> None:
    """By the gradient: exactly 0 elsewhere. Every token of the row is another row of the table."""
    go = forward(model)
    tokens = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    where, documents = tokens, np.repeat(DOCUMENTS_BT, B, axis=0)
    for t in range(T):
        way = np.zeros((B, T, 64), np.float32)
        way[0, t, :V] = np.random.default_rng(t).normal(size=V)
        _, back = go(logits_and_back, tokens, where, documents, way)
        sees = (np.arange(T) <= t) & (documents[0] == documents[0, t])
        rows = [name for name in ("embedding/table", "positions/table") if name in named(back)]
        for name in rows:
            felt = np.abs(named(back)[name][:T]).sum(axis=1)
            assert (felt[sees] > 0).all() and (felt[~sees] == 0).all(), (name, t)


# --- decoding ---------------------------------------------------------------------------------------


def whole(model: Any, tokens_BT: Any) -> Any:
    return model.hidden(tokens_BT)


def extend(model: Any, tokens_BT: Any, cache: Cache) -> Any:
    return model.extend(tokens_BT, cache)


def empty(go: Forward, rows: int) -> Cache:
    with on():
        return go.model.cache(rows, T + 3, go.compute)


DECODED = [*FAMILIES, MISTRAL, GPT_3]


@pytest.mark.parametrize("model", DECODED)
@pytest.mark.parametrize("prompt", [1, 5])
def test_tokens_one_by_one_through_the_cache_are_the_whole_sequence(
    model: Decoder, prompt: int
) -> None:
    go, tokens_BT = forward(model), packed()["tokens_BT"]
    x_BTD, cache = go(extend, tokens_BT[:, :prompt], empty(go, B))
    parts = [x_BTD]
    for t in range(prompt, T):
        x_BTD, cache = go(extend, tokens_BT[:, t : t + 1], cache)
        parts.append(x_BTD)
    assert cache.length == T
    want = go(whole, tokens_BT)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [*DECODED, *DECODERS, *OWN])
def test_a_row_padded_on_the_left_goes_on_as_without_its_padding(model: Decoder) -> None:
    go, tokens_BT = forward(model), packed()["tokens_BT"]
    first_B = np.arange(B, dtype=np.int32) % 5
    padded_BT = np.stack(
        [np.roll(row, first) for row, first in zip(tokens_BT, first_B, strict=True)]
    )
    cache = dataclasses.replace(empty(go, B), first_B=jnp.asarray(first_B))
    x_BTD, cache = go(extend, padded_BT[:, :7], cache)
    parts = [x_BTD]
    for t in range(7, T):
        x_BTD, cache = go(extend, padded_BT[:, t : t + 1], cache)
        parts.append(x_BTD)
    got, want = np.concatenate(parts, axis=1), go(whole, tokens_BT)
    for row, first in enumerate(first_B):
        np.testing.assert_allclose(got[row, first:], want[row, : T - first], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "slots"), [(LLAMA, {T + 3}), (MISTRAL, {5}), (GPT_3, {T + 3, 4})]
)
def test_a_window_keeps_no_more_keys_than_it_sees(model: Decoder, slots: set[int]) -> None:
    assert {keys.k_BSKH.shape[2] for keys in empty(forward(model), B).layers} == slots


def test_kinds_of_layers_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(Mistake, match=r"model.layers is 2 and its layers come in 3 kinds"):
        forward(dataclasses.replace(GPT_2, windows=(None, 4, 4)))
