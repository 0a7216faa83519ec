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
from pretrain.interop import hf
from pretrain.models.dropout import Dropout
from pretrain.parametrisation import weights
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
        "llama3_8b": "8_030_261_248", "llama3_2_1b": "1_235_814_400",
        "llama_7b": "6.7e9", "llama_13b": "13.0e9", "llama_33b": "32.5e9", "llama_65b": "65.2e9",
        "gpt2": "124.4e6", "gpt2_medium": "354.8e6", "gpt2_large": "774.0e6", "gpt2_xl": "1557.6e6",
        "gpt3_125m": "125e6", "gpt3_350m": "0.35e9", "gpt3_760m": "760e6", "gpt3_1_3b": "1.3e9",
        "gpt3_2_7b": "2.7e9", "gpt3_6_7b": "6.7e9", "gpt3_13b": "13e9", "gpt3_175b": "175e9",
        "codex_85m": "85e6", "codex_300m": "0.30e9", "codex_679m": "679e6", "codex_2_5b": "2.5e9",
        "codex_12b": "12e9", "jurassic1_7_5b": "7.5e9", "jurassic1_178b": "178e9",
        "mt_nlg_530b": "530e9", "gpt1": "117e6", "mistral_7b": "7.3e9", "falcon_7b": "7e9",
        "mpt_7b": "6.7e9", "gptj_6b": "6.05e9", "gpt_neox_20b": "20_554_567_680",
        "gemma_2b": "2_506_434_560", "gemma_7b": "8_538_074_112", "bloom_560m": "559e6",
        "bloom_1_1b": "1065e6", "bloom_1_7b": "1722e6", "bloom_3b": "3003e6", "bloom_7_1b": "7069e6",
        "bloom_176b": "176_247e6", "opt_125m": "125e6", "opt_350m": "331_196_416", "opt_1_3b": "1.3e9",
        "opt_2_7b": "2.7e9", "opt_6_7b": "6.7e9", "opt_13b": "13e9", "opt_30b": "30e9", "opt_66b": "66e9",
        "opt_175b": "175e9", "gopher_44m": "44e6", "gopher_117m": "117e6", "gopher_417m": "417e6",
        "gopher_1_4b": "1.4e9", "gopher_7_1b": "7.1e9", "gopher_280b": "280e9",
        "chinchilla_70b": "70e9", "rwkv4_169m": "169.3e6", "rwkv4_430m": "430.4e6",
        "rwkv4_1_5b": "1.515e9", "rwkv4_3b": "2.985e9", "rwkv4_7b": "7.393e9", "rwkv4_14b": "14.15e9",
        "yalm_100b": "100e9", "gpt_neo_2_7b": "2.7e9",
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
        (15.0e12, "llama3_8b"),
        (9.0e12, "llama3_2_1b"),
        (2.0e12, "llama2_7b llama2_13b llama2_34b llama2_70b"),
        (300e9, "gpt3_125m gpt3_350m gpt3_760m gpt3_1_3b gpt3_2_7b gpt3_6_7b gpt3_13b gpt3_175b"),
        (300e9, "jurassic1_7_5b jurassic1_178b"),
        (100e9, "codex_85m codex_300m codex_679m codex_2_5b codex_12b"),
        (270e9, "mt_nlg_530b"),
        (341e9, "bloom_560m bloom_1_1b bloom_1_7b bloom_3b bloom_7_1b"),
        (366e9, "bloom_176b"),
        (300e9, "opt_125m opt_350m opt_1_3b opt_2_7b opt_6_7b opt_13b opt_30b opt_66b opt_175b"),
        (300e9, "gopher_44m gopher_117m gopher_417m gopher_1_4b gopher_7_1b gopher_280b"),
        (1.4e12, "chinchilla_70b"),
        (332e9, "rwkv4_169m rwkv4_430m rwkv4_1_5b rwkv4_3b rwkv4_7b rwkv4_14b"),
        (300e9, "yalm_100b"),
        (402e9, "gptj_6b"),
        (1.5e12, "falcon_7b"),
        (1.0e12, "mpt_7b"),
        (3.0e12, "gemma_2b"),
        (6.0e12, "gemma_7b"),
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
        (375e6, 20e9, "bloom_560m bloom_1_1b bloom_1_7b bloom_3b bloom_7_1b bloom_176b"),
        (4e9, 30e9, "falcon_7b"),
    ],
)
def test_what_was_published_in_tokens_lasts_as_many(warmup: float, ramp: float, names: str):
    """To 0.1 %: steps are whole. The warm-up of the learning rate, and the rise of the batch."""
    for name in names.split():
        run = load(name)
        assert tokens_before(run, run.optim.schedule.warmup) == pytest.approx(warmup, rel=1e-3)
        assert tokens_before(run, run.ramp.stages[-1][0]) == pytest.approx(ramp, rel=1e-3)


@pytest.mark.parametrize(
    "names, peaks, batches",
    [
        (
            "gpt3_125m gpt3_350m gpt3_760m gpt3_1_3b gpt3_2_7b gpt3_6_7b gpt3_13b gpt3_175b",
            "6e-4 3e-4 2.5e-4 2e-4 1.6e-4 1.2e-4 1e-4 0.6e-4",
            "0.5 0.5 0.5 1 1 2 2 3.2",
        ),
        (
            "opt_125m opt_350m opt_1_3b opt_2_7b opt_6_7b opt_13b opt_30b opt_66b opt_175b",
            "6e-4 3e-4 2e-4 1.6e-4 1.2e-4 1e-4 1e-4 0.8e-4 1.2e-4",
            "0.5 0.5 1 1 2 4 4 2 2",
        ),
        (
            "bloom_560m bloom_1_1b bloom_1_7b bloom_3b bloom_7_1b bloom_176b",
            "3e-4 2.5e-4 2e-4 1.6e-4 1.2e-4 6e-5",
            "0.5 0.5 1 1 1 4",
        ),
        (
            "gopher_44m gopher_117m gopher_417m gopher_1_4b gopher_7_1b gopher_280b chinchilla_70b",
            "6e-4 6e-4 2e-4 2e-4 1.2e-4 4e-5 1e-4",
            "0.25 0.25 0.25 0.25 2 6 3",
        ),
        ("llama3_8b", "3e-4", "4"),
        ("llama_7b llama_13b llama_33b llama_65b", "3e-4 3e-4 1.5e-4 1.5e-4", "4 4 4 4"),
        ("llama2_7b llama2_13b llama2_34b llama2_70b", "3e-4 3e-4 1.5e-4 1.5e-4", "4 4 4 4"),
    ],
)
def test_rates_and_batches_are_those_of_the_paper_s_table(names: str, peaks: str, batches: str):
    """Batches in millions of tokens: the tables round a power of two to half a million."""
    for name, peak, batch in zip(names.split(), peaks.split(), batches.split(), strict=True):
        run = load(name)
        assert run.optim.peak_lr == float(peak), name
        assert run.batch * run.seq_len == pytest.approx(float(batch) * 1e6, rel=0.05), name


@pytest.mark.parametrize(
    "rates, names",
    [
        (Dropout(embedding=0.1, residual=0.1, attention=0.1), "gpt1 gpt2 gpt2_xl"),
        (Dropout(residual=0.1, attention=0.1), "opt_125m opt_350m opt_175b"),
        (Dropout(), "gpt3_175b mt_nlg_530b llama_7b"),
    ],
)
def test_a_run_drops_what_was_published_and_nothing_where_nothing_was(rates: Dropout, names: str):
    for name in names.split():
        assert load(name).model.dropout == rates, name


def test_every_model_of_a_class_that_transformers_has_can_be_given_to_it():
    classes = {node for family in hf.FAMILIES.values() for node in family.nodes}
    theirs = [run.model for run in map(load, NAMES) if type(run.model) in classes]
    assert len(theirs) > 40
    for model in theirs:
        family, said = hf.translated(model)
        assert family.read(said).dropout == model.dropout, model


def test_mt_nlg_starts_from_weights_of_the_published_deviation():
    """Section 3.2: 4.0e-3. Also on GPT-2's token and position embeddings."""
    run = load("mt_nlg_530b")
    tensors = weights(run.model).by_name
    for name in ("embedding/table", "positions/table", "stack/blocks/attention/query/kernel"):
        assert tensors[name].rms == 4e-3, name
    assert pytest.approx((3 * run.model.d_model) ** -0.5, rel=0.01) == 4e-3
    gpt2 = weights(load("gpt2").model).by_name
    assert [gpt2[f"{name}/table"].rms for name in ("embedding", "positions")] == [0.02, 0.01]


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


def test_the_page_of_models_is_as_it_is_written_and_every_class_is_proven():
    page = (ROOT / "docs" / "models.md").read_text()
    assert page == MODELS["page"](counted), "write it: python tools/models.py > docs/models.md"
    assert "nothing yet" not in page
