"""muP: every tensor's initialisation and rate by hand, and that it does what it is for."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import compiler, config
from pretrain.config import Mistake
from pretrain.coordinates import compared
from pretrain.data.loader import Loader
from pretrain.growth import Growth, growth
from pretrain.models.llama import LLaMA
from pretrain.models.model import Architecture
from pretrain.optim import Adafactor, AdamW, Lion, Muon, Optimizer, PaLMAdafactor
from pretrain.parametrisation import (
    MuP,
    Parametrisation,
    Standard,
    Transferred,
    at_width,
    weights,
)
from pretrain.program import Program
from pretrain.run import Run
from pretrain.schedules import Constant
from pretrain.step import gradients
from pretrain.tensors import named
from small import Place
from tiny import (
    BLOOM,
    FALCON,
    FAMILIES,
    GEMMA,
    GOPHER,
    GPT_1,
    GPT_2,
    GPT_J,
    GPT_NEO,
    LLAMA,
    MISTRAL,
    MOSAIC,
    NEOX,
    OPT_,
    OPT_POST,
    PALM,
    QUICK,
    RWKV_4,
    TIED,
    YALM,
    Keep,
    host,
    on,
    quick,
    run,
)  # fmt: skip

OPTIMIZERS: list[Optimizer] = [
    AdamW(peak_lr=0.01, schedule=Constant()),
    Lion(peak_lr=0.01, schedule=Constant()),
    Muon(peak_lr=0.01, schedule=Constant(), adamw_scale=0.5),
    Muon(peak_lr=0.01, schedule=Constant(), consistent_rms=None),
    Adafactor(weight_decay=0.1),
    PaLMAdafactor(),
]
ADAM, _, LIU, JORDAN, ADAFACTOR, _ = OPTIMIZERS
NAMES = [type(optim).__name__ for optim in OPTIMIZERS]


def transferred(model: Architecture, **fields: Any) -> Transferred:
    built = MuP(**fields).build(model)
    assert isinstance(built, Transferred)
    return built


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: type(model).__name__)
def test_at_the_sizes_of_the_base_model_mup_is_standard(model: Architecture) -> None:
    same = transferred(model, base_width=model.d_model, base_layers=model.layers)
    for name in same.here.by_name:
        assert same.initial(name) == 1.0
        assert [same.rate(name, optim) for optim in OPTIMIZERS] == [1.0] * len(OPTIMIZERS)


# Four times as wide and four times as deep as the base: m = 4, l = 4. By hand, from table 3 of Tensor
# Programs V and table 1 of VI; (initialisation over the family's own, AdamW, Adafactor, Muon by Liu, by
# Jordan). LLaMA initialises with a constant deviation, so that all of m^-1/2 is the parametrisation's.
LLAMA_BY_FOUR = {
    "embedding/table": (1, 1, 1, 1, 1),
    "stack/blocks/attention_norm/gain": (1, 1 / 2, 1 / 2, 1 / 2, 1 / 2),
    "stack/blocks/attention/query/kernel": (1 / 2, 1 / 8, 1 / 4, 1 / 4, 1 / 2),
    "stack/blocks/mlp/up/kernel": (1 / 2, 1 / 8, 1 / 4, 1 / 4, 1 / 2),
    "stack/blocks/mlp/down/kernel": (1 / 4, 1 / 16, 1 / 4, 1 / 8, 1 / 4),
    "stack/blocks/attention/out/kernel": (1 / 4, 1 / 16, 1 / 4, 1 / 8, 1 / 4),
    "norm/gain": (1, 1, 1, 1, 1),
    "unembedding/kernel": (1 / 4, 1 / 4, 1, 1 / 4, 1 / 4),
}


@pytest.mark.parametrize("name", LLAMA_BY_FOUR)
def test_the_tensors_of_a_llama_by_hand(name: str) -> None:
    wide = replace(at_width(LLAMA, 4 * LLAMA.d_model), layers=8)
    scaled = transferred(wide, base_width=LLAMA.d_model, base_layers=2)
    found = scaled.initial(name), *(scaled.rate(name, o) for o in (ADAM, ADAFACTOR, LIU, JORDAN))
    assert found == pytest.approx(LLAMA_BY_FOUR[name], rel=1e-12)


def test_a_tied_table_stays_and_the_final_norm_divides_the_logits_by_the_width() -> None:
    """PaLM's logits are over sqrt(d_model) already: a half of the width is left to divide by."""
    scaled = transferred(at_width(PALM, 4 * PALM.d_model), base_width=PALM.d_model)
    assert scaled.initial("embedding/table") == scaled.rate("embedding/table", ADAM) == 1.0
    assert scaled.initial("norm/gain") == scaled.rate("norm/gain", ADAM) == pytest.approx(1 / 2)
    plain = transferred(at_width(GPT_2, 4 * GPT_2.d_model), base_width=GPT_2.d_model)
    for name in ("norm/gain", "norm/bias"):
        assert plain.rate(name, ADAM) == pytest.approx(1 / 4)


def test_what_a_family_does_itself_is_not_done_twice() -> None:
    """PaLM initialises by fan-in, GPT-2 divides what a block adds by the root of its depth."""
    wide = transferred(at_width(PALM, 4 * PALM.d_model), base_width=PALM.d_model)
    assert wide.initial("stack/blocks/mlp/down/kernel") == pytest.approx(1.0)
    deep = transferred(replace(GPT_2, layers=8), base_width=GPT_2.d_model, base_layers=2)
    assert deep.initial("stack/blocks/mlp/down/kernel") == pytest.approx(1.0)
    assert deep.rate("stack/blocks/mlp/down/bias", ADAM) == pytest.approx(1 / 4)
    assert deep.rate("stack/blocks/mlp/up/bias", ADAM) == pytest.approx(1 / 2)


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=NAMES)
def test_an_update_is_scaled_and_its_weight_decay_is_not(optim: Optimizer) -> None:
    """Against the optimizer alone: with its decay on every tensor, and by itself."""
    wide = at_width(LLAMA, 2 * LLAMA.d_model)
    scaled = transferred(wide, base_width=LLAMA.d_model, base_layers=1)
    tree = weights(wide).tree
    dims = jax.tree.map(lambda weight: weight.dims, tree)
    draw = np.random.default_rng(0)

    def arrays(scale: float) -> Any:
        return jax.tree.map(
            lambda w: jnp.asarray(scale * draw.normal(size=w.shape), jnp.float32), tree
        )

    params, grads = arrays(0.1), arrays(1.0)

    def updated(tx: Any, grads: Any) -> dict[str, Any]:
        def update(grads: Any, params: Any, rate: jax.Array) -> Any:
            return tx.update(grads, tx.init(params), params, learning_rate=rate)[0]

        given = grads, params, jnp.float32(0.01)
        return named(quick(update, *given)(*given))

    zero = jax.tree.map(jnp.zeros_like, grads)
    ours = updated(scaled.optimizer(optim, dims), grads)
    theirs = updated(optim.build(dims), grads)
    if isinstance(optim, PaLMAdafactor | Adafactor):  # a zero gradient is no zero update for them
        decays = {n: -(0.01**2) * x for n, x in named(params).items()}
        if isinstance(optim, Adafactor):
            decays = {n: x * 10.0 * float("->" in named(dims)[n]) for n, x in decays.items()}
    else:
        decays = updated(optim.build(dims), zero)
    for name, change in ours.items():
        expected = scaled.rate(name, optim) * (theirs[name] - decays[name]) + decays[name]
        np.testing.assert_allclose(change, expected, rtol=2e-4, atol=2e-8, err_msg=name)


def test_a_run_starts_from_the_scaled_initialisation_on_any_mesh() -> None:
    wide = at_width(PALM, 2 * PALM.d_model)
    standard = run(wide, optim=ADAM)
    parametrised = replace(standard, parametrisation=MuP(base_width=PALM.d_model, base_layers=1))
    found = []
    for given, axes in ((standard, ()), (parametrised, ()), (parametrised, (("fsdp", 4),))):
        with on(axes) as mesh:
            initial = Program(given, mesh).initialise
            compiled = initial.lower().compile(compiler_options=QUICK)
            found.append(host(compiled().params))
    plain, one, four = found
    scaled = transferred(wide, base_width=PALM.d_model, base_layers=1)
    assert any(scaled.initial(name) != 1 for name in plain)
    for name in plain:
        np.testing.assert_allclose(one[name], scaled.initial(name) * plain[name], rtol=1e-6)
        np.testing.assert_allclose(four[name], one[name], rtol=1e-6)


def test_a_config_with_mup_survives_json() -> None:
    given = replace(run(LLAMA), optim=ADAM, parametrisation=MuP(base_width=16))
    assert config.from_json(config.to_json(given)) == given


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_width": 0}, "parametrisation.base_width is 0"),
        ({"base_width": 4}, "model.heads = 0.5"),
        ({"base_width": 16, "base_layers": 0}, "parametrisation.base_layers is 0"),
    ],
)
def test_a_base_that_cannot_be_is_one_sentence(fields: Any, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        MuP(**fields).build(replace(LLAMA, heads=4, kv_heads=4))


def test_what_mup_has_no_rule_for_is_refused() -> None:
    with pytest.raises(Mistake, match="no rule for Keep"):
        transferred(LLAMA, base_width=16).optimizer(Keep(), None)


@pytest.mark.parametrize(
    "model", [GPT_1, GEMMA, YALM, OPT_POST], ids=lambda model: type(model).__name__
)
def test_a_family_whose_logits_cannot_be_scaled_is_refused(model: Architecture) -> None:
    """Their heads are their embeddings, behind no norm, one with an offset, and two that narrow."""
    name = type(model).__name__
    with pytest.raises(Mistake, match=f"the output head of {name} is its embedding, with no gain"):
        MuP(base_width=model.d_model).build(model)


SCALED = [
    PALM, LLAMA, TIED, GPT_2, MISTRAL, BLOOM, MOSAIC, FALCON, OPT_, GPT_NEO, NEOX, GPT_J, GOPHER,
    RWKV_4,
]  # fmt: skip


@pytest.mark.parametrize("model", SCALED, ids=[f"{type(m).__name__}{m.layers}" for m in SCALED])
def test_every_family_starts_as_the_theory_has_it(model: Architecture) -> None:
    """Whatever its own initialisers do with the width: table 3 of Tensor Programs V, at four times it.

    Of every tensor, the deviation that it ends up with over the base's: what it would be, by its fans.
    """
    wide = at_width(model, 4 * model.d_model)
    scaled = transferred(wide, base_width=model.d_model)
    expected = {(4, 4): 1 / 2, (4, 1): 1 / 4, (1, 4): 1.0, (1, 1): 1.0}
    for name, base in scaled.base.by_name.items():
        here = scaled.here.by_name[name]
        fans = here.inputs // base.inputs, here.outputs // base.outputs
        if fans[1] == 1 and "->" not in base.dims:
            fans = (1, 1)  # a vector
        folded = 4 if name in ("norm/gain", "norm/bias") and scaled.here.tied else 1
        head = scaled.base.head_scale / scaled.here.head_scale  # of PaLM, which divides by itself
        folded = folded / head if folded > 1 else 1
        if base.rms:
            found = scaled.initial(name) * here.rms / base.rms
            assert found == pytest.approx(expected[fans] / folded), name
        assert scaled.rate(name, ADAM) == pytest.approx((1 / 4 if fans[0] == 4 else 1) / folded), (
            name
        )


def test_one_key_value_head_is_initialised_as_an_output_head_is() -> None:
    """It does not become wider as its inputs do: the deviation falls by all of their number."""
    scaled = transferred(at_width(PALM, 4 * PALM.d_model), base_width=PALM.d_model)
    for name in ("key", "value"):
        kernel = f"stack/blocks/attention/{name}/kernel"
        assert scaled.here.by_name[kernel].shape[-2:] == (1, PALM.head_dim)
        # PaLM divides by the root of its fan-in itself, so that the other root is left.
        assert scaled.initial(kernel) == pytest.approx(1 / 2)
        assert scaled.rate(kernel, ADAM) == pytest.approx(1 / 4)


# --- what it is for -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small LLaMA on the tests' corpus."""
    place = Place(tmp_path_factory.getbasetemp() / "small")
    model = LLaMA(vocab=256, layers=1, d_model=64, heads=4, kv_heads=4, head_dim=16, d_ff=128)
    optim = AdamW(peak_lr=2**-7, schedule=Constant(), weight_decay=0.0)
    found = config.load(str(place.config))
    assert isinstance(found, Run)
    return replace(found, model=model, optim=optim)


def measured(run: Run, width: int, parametrisation: Parametrisation, steps: int = 2) -> Growth:
    """What the run does at a width."""
    wide = replace(run, model=at_width(run.model, width), parametrisation=parametrisation)
    with mock.patch.object(compiler, "cpu", lambda: QUICK):
        return growth(wide, steps)


def first_steps(found: Growth, steps: int) -> Growth:
    """What was measured, up to a step."""
    return Growth(
        *({n: x[: 1 + steps] for n, x in s.items()} for s in (found.sizes, found.aligned))
    )


@pytest.mark.slow
def test_training_starts_and_moves_alike_at_every_width_under_mup_and_not_without(
    base: Run,
) -> None:
    """And a multiplier that is left out, of any tensor, is found and named."""
    mup, widths = MuP(base_width=32), (32, 128)
    narrow = measured(base, 32, mup)
    assert compared(base.model, widths, [narrow, measured(base, 128, mup)]).fault() == ""
    begun = first_steps(narrow, 1)
    standard = compared(base.model, widths, [begun, measured(base, 128, Standard(), steps=1)])
    assert "grows with a slope" in standard.fault()
    assert standard.slopes("residual stream")[-1] > 0.5
    for name, kind, steps, words in (
        ("stack/blocks/attention/query/kernel", "rate", 1, "query/kernel grows .* at step 1"),
        ("unembedding/kernel", "initial", 0, "logits, initial head grows .* at the start"),
    ):
        rule = getattr(Transferred, kind)

        def left_out(self: Transferred, tensor: str, *rest: Any) -> float:
            return 1.0 if tensor == name else rule(self, tensor, *rest)  # noqa: B023

        with mock.patch.object(Transferred, kind, left_out):
            broken = measured(base, 128, mup, steps)
        begun = first_steps(narrow, steps)
        assert re.search(words, compared(base.model, widths, [begun, broken]).fault())


@pytest.mark.slow
def test_one_key_value_head_and_a_scaled_tied_head_move_as_the_theory_has_it(base: Run) -> None:
    model = at_width(replace(PALM, vocab=256, layers=1), 128)
    run = replace(base, model=model, batch=4, seq_len=16)
    found = [measured(run, width, MuP(base_width=128), steps=1) for width in (128, 512)]
    assert compared(model, (128, 512), found).fault() == ""


def mean_loss(run: Run, steps: int) -> Callable[[float], float]:
    """The training loss, over so many steps, as a function of the learning rate."""
    with on() as mesh:
        program = Program(run, mesh)
        corpus = run.data.prepare(lambda text: None)
        loader = Loader(
            corpus.train, seq_len=run.seq_len, seed=0, mask_documents=False,
            batch_rows=lambda step: (step * run.batch, run.batch), sharding=program.batch_sharding,
        )  # fmt: skip
        batches = [loader.batch(step) for step in range(steps)]
        tx = run.parametrisation.build(run.model).optimizer(run.optim, program.dims)

        @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=QUICK)
        def step(params: Any, kept: Any, batch: Any, rate: jax.Array) -> Any:
            grads, metrics = gradients(program.graph, run.objective, 1, params, batch)
            updates, kept = tx.update(grads, kept, params, learning_rate=rate)
            return jax.tree.map(jnp.add, params, updates), kept, metrics["loss"]

        with mock.patch.object(compiler, "cpu", lambda: QUICK):
            start = program.initialise().params

    def loss(rate: float) -> float:
        with on():
            params = jax.tree.map(jnp.copy, start)
            kept, losses = tx.init(params), []
            for batch in batches:
                params, kept, now = step(params, kept, batch, jnp.float32(rate))
                losses.append(float(now))
            return sum(losses) / len(losses)

    return loss


@pytest.mark.slow
def test_the_best_learning_rate_at_width_64_is_the_best_at_width_512(base: Run) -> None:
    rates = [2.0**power for power in (-9, -7, -5, -3)]
    base = replace(base, batch=4, seq_len=16)
    wide = replace(base, model=at_width(base.model, 512))

    def losses(run: Run) -> np.ndarray:
        return np.nan_to_num(list(map(mean_loss(run, 12), rates)), nan=math.inf)

    narrow, mup = losses(base), losses(replace(wide, parametrisation=MuP(base_width=64)))
    best = int(np.argmin(narrow))
    assert 0 < best < len(rates) - 1, "the best is inside the range"
    assert np.argmin(mup) == best
    np.testing.assert_allclose(mup[: best + 1], narrow[: best + 1], atol=0.05)
    assert np.argmin(losses(wide)) < best, "without muP it is lower"
