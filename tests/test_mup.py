"""muP: every tensor's initialisation and rate by hand, and that it does what it is for."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import compiler, config, coordinates
from pretrain.config import Mistake
from pretrain.data.loader import Loader
from pretrain.models.llama import LLaMA
from pretrain.models.model import Architecture
from pretrain.optim import Adafactor, AdamW, Lion, Muon, Optimizer, PaLMAdafactor
from pretrain.parametrisation import MuP, Standard, Transferred, at_width, weights
from pretrain.program import Program
from pretrain.run import Run
from pretrain.schedules import Constant
from pretrain.step import gradients
from pretrain.tensors import named
from small import Place
from tiny import FAMILIES, GPT_2, LLAMA, PALM, QUICK, Keep, host, on, quick, run

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
    scaled = transferred(LLAMA, base_width=16)
    with pytest.raises(Mistake, match="no rule for Keep"):
        scaled.optimizer(Keep(), None)
    gainless = {n: w for n, w in weights(PALM).by_name.items() if not n.startswith("norm/")}
    bare = replace(scaled, here=replace(scaled.here, by_name=gainless))
    with pytest.raises(Mistake, match="neither an output head of its own nor a final norm"):
        bare.optimizer(ADAM, None)


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


@pytest.mark.slow
def test_activations_change_alike_at_every_width_under_mup_and_not_without(base: Run) -> None:
    with mock.patch.object(compiler, "cpu", lambda: QUICK):
        mup = coordinates.check(base, MuP(base_width=64), (64, 256), 4)
        plain = coordinates.check(base, Standard(), (64, 256), 4)
    assert mup.fault() == ""
    assert abs(mup.slope("residual", 4)) < 0.2 and abs(mup.slope("embedding", 4)) < 0.2
    assert plain.slope("residual", 4) > 0.5
    assert "grows with a slope" in plain.fault()


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

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, kept: Any, batch: Any, rate: jax.Array) -> Any:
            grads, metrics = gradients(program.graph, run.objective, 1, params, batch)
            updates, kept = tx.update(grads, kept, params, learning_rate=rate)
            return jax.tree.map(jnp.add, params, updates), kept, metrics["loss"]

    def loss(rate: float) -> float:
        with on():
            params = program.initialise().params
            kept, losses = tx.init(params), []
            for batch in batches:
                params, kept, now = step(params, kept, batch, jnp.float32(rate))
                losses.append(float(now))
            return sum(losses) / len(losses)

    return loss


@pytest.mark.slow
def test_the_best_learning_rate_at_width_64_is_the_best_at_width_512(base: Run) -> None:
    rates = [2.0**power for power in (-9, -7, -5, -3)]
    wide = replace(base, model=at_width(base.model, 512))

    def losses(run: Run) -> np.ndarray:
        return np.nan_to_num(list(map(mean_loss(run, 12), rates)), nan=math.inf)

    narrow, mup = losses(base), losses(replace(wide, parametrisation=MuP(base_width=64)))
    best = int(np.argmin(narrow))
    assert 0 < best < len(rates) - 1, "the best is inside the range"
    assert np.argmin(mup) == best
    np.testing.assert_allclose(mup[: best + 1], narrow[: best + 1], atol=0.05)
    assert np.argmin(losses(wide)) < best, "without muP it is lower"
