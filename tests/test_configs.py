"""Every config of configs/: loads, checks, builds abstractly, and has its published size.

A config's tensors are traced once; everything that needs their number shares that.
"""

import functools
import json
import runpy
from decimal import Decimal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pretrain import config
from pretrain.describe import describe, devices_for
from pretrain.flops import Parameters
from pretrain.run import Run

ROOT = Path(__file__).parents[1]
MODELS = runpy.run_path(str(ROOT / "tools" / "models.py"))
FILES = sorted(set(ROOT.glob("configs/*.py")))
NAMES = [file.stem for file in FILES if file.stem != "__init__"]
PUBLISHED = [name for name in NAMES if not name.endswith("_tiny")]


def path(name: str) -> str:
    return str(next(file for file in FILES if file.stem == name))


@functools.cache
def load(name: str) -> Run:
    return config.load(path(name))


@functools.cache
def counted(run: Run) -> Parameters:
    return MODELS["counted"](run)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_checks_and_builds_on_the_devices_that_it_is_for(name: str):
    """The fields, the layout, and every tensor of the model on the config's own mesh."""
    run = load(name)
    assert isinstance(run, Run)
    run.check()
    run.check_layout(run.mesh.sizes(devices_for(run.mesh, None)))
    assert counted(run).total > 0


def kinds() -> list[str]:
    """The first config of every pair of a model class and an optimizer class."""
    first = {(type(load(name).model), type(load(name).optim)): name for name in reversed(NAMES)}
    return sorted(first.values())


@pytest.mark.parametrize("name", kinds())
def test_a_config_of_every_kind_builds_its_optimizer_and_its_train_step(name: str):
    """`describe` does; it counts what the page of models counts with less."""
    run = load(name)
    assert describe(run, devices_for(run.mesh, None)).parameters == counted(run)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_survives_json(name: str):
    assert config.from_json(json.loads(json.dumps(config.to_json(load(name))))) == load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_parameters_that_were_published(name: str):
    """To less than one of the last digit written: papers round and cut."""
    binding, written = published(name)
    digit = Decimal(1).scaleb(Decimal(written).as_tuple().exponent)  # type: ignore[arg-type]
    of = counted(load(name))
    number = of.non_embedding if "non_embedding" in binding else of.total
    assert abs(number - Decimal(written)) < digit


def published(name: str) -> tuple[str, str]:
    """What a config binds to its published size, and the digits: ("published_parameters", "6.7e9")."""
    lines = Path(path(name)).read_text().splitlines()
    [line] = [line for line in lines if line.startswith("published_")]
    binding, written = line.split(" = ")
    return binding, written


@pytest.mark.parametrize(
    "name, digits",
    {
        "palm_8b": "8.63e9", "palm_62b": "62.50e9", "palm_540b": "540.35e9",
        "llama2_7b": "6.74e9", "llama2_13b": "13.02e9", "llama2_34b": "34e9", "llama2_70b": "68.98e9",
        "llama_7b": "6.7e9", "llama_13b": "13.0e9", "llama_33b": "32.5e9", "llama_65b": "65.2e9",
        "gpt2": "124.4e6", "gpt2_medium": "354.8e6", "gpt2_large": "774.0e6", "gpt2_xl": "1557.6e6",
        "gpt3_125m": "125e6", "gpt3_350m": "0.35e9", "gpt3_760m": "760e6", "gpt3_1_3b": "1.3e9",
        "gpt3_2_7b": "2.7e9", "gpt3_6_7b": "6.7e9", "gpt3_13b": "13e9", "gpt3_175b": "175e9",
        "codex_85m": "85e6", "codex_300m": "0.30e9", "codex_679m": "679e6", "codex_2_5b": "2.5e9",
        "codex_12b": "12e9", "jurassic1_7_5b": "7.5e9", "jurassic1_178b": "178e9",
        "mt_nlg_530b": "530e9",
    }.items(),
)  # fmt: skip
def test_the_published_digits_stand_in_the_file(name: str, digits: str):
    assert published(name)[1] == digits


@pytest.mark.parametrize(
    "tokens, names",
    [
        (780e9, "palm_8b palm_62b palm_540b"),
        (1.0e12, "llama_7b llama_13b"),
        (1.4e12, "llama_33b llama_65b"),
        (2.0e12, "llama2_7b llama2_13b llama2_34b llama2_70b"),
        (300e9, "gpt3_125m gpt3_350m gpt3_760m gpt3_1_3b gpt3_2_7b gpt3_6_7b gpt3_13b gpt3_175b"),
        (300e9, "jurassic1_7_5b jurassic1_178b"),
        (100e9, "codex_85m codex_300m codex_679m codex_2_5b codex_12b"),
        (270e9, "mt_nlg_530b"),
    ],
)
def test_a_run_reads_the_tokens_that_were_published(tokens: float, names: str):
    """To 1 %: the papers round theirs."""
    for name in names.split():
        run = load(name)
        assert tokens_before(run, run.steps) == pytest.approx(tokens, rel=0.01), name


def tokens_before(run: Run, step: int) -> int:
    return run.ramp.rows(step, run.batch)[0] * run.seq_len


@pytest.mark.parametrize(
    "warmup, ramp, names",
    [
        (375e6, 4e9, "gpt3_125m gpt3_350m gpt3_760m gpt3_1_3b gpt3_2_7b gpt3_6_7b gpt3_13b"),
        (375e6, 12e9, "gpt3_175b"),
        (1e9, 12e9, "mt_nlg_530b"),
    ],
)
def test_what_was_published_in_tokens_lasts_as_many(warmup: float, ramp: float, names: str):
    """To 0.1 %: steps are whole. The warm-up of the learning rate, and the rise of the batch."""
    for name in names.split():
        run = load(name)
        assert tokens_before(run, run.optim.schedule.warmup) == pytest.approx(warmup, rel=1e-3)
        assert tokens_before(run, run.ramp.stages[-1][0]) == pytest.approx(ramp, rel=1e-3)


def test_mt_nlg_takes_32_sequences_more_each_time():
    """Section 3.2: from 32 to 1920, each size for as many tokens."""
    sizes = load("mt_nlg_530b").ramp.sizes(1920)
    assert sizes == tuple(range(32, 1921, 32))


@pytest.mark.parametrize("name", ["palm_8b", "palm_62b", "palm_540b"])
def test_palm_learns_at_its_published_rates(name: str):
    """Section 5: 1e-2 for 10,000 steps, then 1 / sqrt(step)."""
    run = load(name)
    rates = run.optim.learning_rate(jnp.array([0, 9_999, 40_000]), run.steps)
    assert jnp.allclose(rates, jnp.array([1e-2, 1e-2, 5e-3]), rtol=1e-6)
    assert run.objective.z_loss == 1e-4


def test_palm_540b_is_for_more_devices_than_are_here():
    assert devices_for(load("palm_540b").mesh, None) == 2 * 256 * 12 > jax.device_count()


def test_the_page_of_models_is_as_it_is_written():
    assert (ROOT / "docs" / "models.md").read_text() == MODELS["page"](counted)
