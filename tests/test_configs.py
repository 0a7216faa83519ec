"""Every config of configs/: loads, checks, builds abstractly, and has its published size."""

import functools
import json
from decimal import Decimal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pretrain import config
from pretrain.describe import Description, describe, devices_for
from pretrain.run import Run

FILES = sorted(set(Path(__file__).parents[1].glob("configs/*.py")))
NAMES = [file.stem for file in FILES if file.stem != "__init__"]
PUBLISHED = [name for name in NAMES if not name.endswith("_tiny")]


def path(name: str) -> str:
    return str(next(file for file in FILES if file.stem == name))


@functools.cache
def load(name: str) -> Run:
    return config.load(path(name))


@functools.cache
def described(name: str) -> Description:
    return describe(load(name), devices_for(load(name).mesh, None))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_checks_and_builds_on_the_devices_that_it_is_for(name: str):
    """`describe` checks the fields and the layout, and builds state, train step and optimizer."""
    assert isinstance(load(name), Run)
    assert described(name).parameters.total > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_config_survives_json(name: str):
    assert config.from_json(json.loads(json.dumps(config.to_json(load(name))))) == load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_parameters_that_were_published(name: str):
    """To less than one of the last digit written: papers round and cut."""
    lines = Path(path(name)).read_text().splitlines()
    [written] = [line.split(" = ")[1] for line in lines if line.startswith("published_parameters")]
    digit = Decimal(1).scaleb(Decimal(written).as_tuple().exponent)  # type: ignore[arg-type]
    assert abs(described(name).parameters.total - Decimal(written)) < digit


@pytest.mark.parametrize(
    "name, digits",
    {
        "palm_8b": "8.63e9", "palm_62b": "62.50e9", "palm_540b": "540.35e9",
        "llama2_7b": "6.74e9", "llama2_13b": "13.02e9", "llama2_70b": "68.98e9",
        "gpt2": "124.4e6", "gpt2_medium": "354.8e6", "gpt2_large": "774.0e6", "gpt2_xl": "1557.6e6",
    }.items(),
)  # fmt: skip
def test_the_published_digits_stand_in_the_file(name: str, digits: str):
    assert config.load(path(name), "published_parameters") == float(digits)


@pytest.mark.parametrize(
    "name, tokens",
    {"palm_8b": 780e9, "palm_62b": 780e9, "palm_540b": 780e9}.items()
    | dict.fromkeys(["llama2_7b", "llama2_13b", "llama2_70b"], 2e12).items(),
)
def test_a_run_reads_the_tokens_that_were_published(name: str, tokens: float):
    """To 1 %: the papers round theirs."""
    assert described(name).tokens == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize("name", ["palm_8b", "palm_62b", "palm_540b"])
def test_palm_learns_at_its_published_rates(name: str):
    """Section 5: 1e-2 for 10,000 steps, then 1 / sqrt(step)."""
    run = load(name)
    rates = run.optim.learning_rate(jnp.array([0, 9_999, 40_000]), run.steps)
    assert jnp.allclose(rates, jnp.array([1e-2, 1e-2, 5e-3]), rtol=1e-6)
    assert run.objective.z_loss == 1e-4


def test_palm_540b_is_for_more_devices_than_are_here():
    assert described("palm_540b").devices == 2 * 256 * 12 > jax.device_count()
