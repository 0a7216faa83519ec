"""Config files, overrides, JSON, differences: what is read, and what each mistake says."""

import dataclasses
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain import config
from pretrain.config import Mistake, Node
from pretrain.configs.llama_tiny import config as llama_tiny
from pretrain.configs.palm_tiny import config as palm_tiny
from pretrain.models.model import Compute
from pretrain.optim import AdamW, PaLMAdafactor
from pretrain.schedules import Constant, Ramp
from pretrain.sharding import Mesh, Rules
from pretrain.train import train  # noqa: F401  # every class that a run is made of


class Inner(Node):
    size: int  # how much
    names: tuple[str, ...] = ()  # of whom


class Outer(Node):
    inner: Inner = Inner(size=1)  # one node
    stages: tuple[Inner, ...] = ()  # several nodes
    rate: float | None = 0.5  # None is none


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistake(name: str) -> str:
    with pytest.raises(Mistake) as raised:
        config.load(name)
    return str(raised.value)


# --- nodes ------------------------------------------------------------------------------------------


def test_a_node_is_a_frozen_value_with_named_fields() -> None:
    node = Inner(size=2)
    assert node == Inner(size=2, names=()) != Inner(size=3)
    assert hash(node) == hash(Inner(size=2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.size = 3


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Inner(3), "Inner takes its fields by name: Inner(size=...)."),
        (lambda: Inner(sizes=3), "Inner has no field 'sizes' (did you mean 'size'?)."),
        (lambda: Inner(x=3), "Inner has no field 'x' (there are size, names)."),
        (lambda: Inner(names=()), "Inner needs size: give it a value."),
        (
            lambda: dataclasses.replace(Inner(size=1), name=("a",)),
            "Inner has no field 'name' (did you mean 'names'?).",
        ),
    ],
)
def test_a_node_refuses_what_it_has_no_field_for_and_asks_for_what_it_needs(
    build: Any, sentence: str
) -> None:
    with pytest.raises(Mistake) as raised:
        build()
    assert str(raised.value) == sentence


# --- files ------------------------------------------------------------------------------------------


def test_a_config_is_found_by_path_then_in_configs_then_in_the_package(here: Path) -> None:
    assert config.load("palm_tiny") == config.load("palm_tiny.py") == palm_tiny
    (here / "configs").mkdir()
    (here / "configs" / "palm_tiny.py").write_text("config = 'in configs'")
    assert config.load("palm_tiny") == config.load("configs/palm_tiny.py") == "in configs"
    (here / "palm_tiny.py").write_text("config = 'here'")
    assert config.load("palm_tiny") == "here"
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "mine.py").write_text("config = 'elsewhere'; size = 3")
    assert config.load("elsewhere/mine") == config.load(str(here / "elsewhere/mine.py"))
    assert config.load("elsewhere/mine", "size") == 3


def test_a_config_that_does_not_exist_says_where_it_was_sought_and_what_is_near(here: Path) -> None:
    sentence = mistake("palm_tny.py")
    assert sentence.startswith("there is no config 'palm_tny.py' (did you mean 'palm_tiny.py'")
    assert sentence.endswith(
        "searched: the path itself, ./configs, the configs of the installed package."
    )
    (here / "configs").mkdir()
    (here / "configs" / "my_own_model.py").touch()
    assert "did you mean 'my_own_model.py'?" in mistake("myown_model")


def test_a_path_that_is_no_python_file_is_named(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.json").touch()
    for name in ("run", "run/config.json"):
        assert mistake(name).startswith(f"{name} is not a Python file: ")


HEADER = "from pretrain.configs.palm_tiny import config as base\nfrom dataclasses import replace\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\nconfig = replace(base, stesp=3)", 4, "Run has no field 'stesp' (did you mean 'steps'?)."),
        (
            "from pretrain.models.palm import PaLM\n"
            "model = PaLM(vocab=256, layers=4, d_model=256, heads=4, head_dmi=64, d_ff=1024)\n"
            "config = replace(base, model=model)",
            4, "PaLM has no field 'head_dmi' (did you mean 'head_dim'",
        ),
        ("from pretrain.models.palm import PaLM\nPaLM(vocab=8, heads=2)", 4, "PaLM needs layers, d_model"),
        ("def build():\n    return replace(base, batches=1)\n\nconfig = build()", 4, "did you mean 'batch'"),
        ("config = replace(base,\n    steps=3", 3, "SyntaxError: '(' was never closed"),
        ("config = bse", 3, "NameError: name 'bse' is not defined"),
        ("from pretrain.modles import palm", 3, "ModuleNotFoundError: No module named 'pretrain.modles'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("absolute", [False, True])
def test_a_mistake_in_a_file_is_named_with_the_file_and_its_line(
    here: Path, text: str, line: int, words: str, absolute: bool
) -> None:
    (here / "mine.py").write_text(HEADER + text)
    name = str(here / "mine.py") if absolute else "mine.py"
    sentence = mistake(name)
    assert sentence.startswith(f"{name}, line {line}: ") and words in sentence


def test_an_error_of_several_lines_is_told_in_one(here: Path) -> None:
    (here / "mine.py").write_text('raise ValueError("one,\\n  two.")')
    assert mistake("mine") == "mine.py, line 1: ValueError: one, two."


def test_a_file_that_binds_no_config_is_a_mistake(here: Path) -> None:
    (here / "mine.py").write_text("conf = 1")
    assert mistake("mine") == "mine.py does not bind `config`: end it with `config = ...`."


# --- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "100"}, "steps is '100': it must be int."),
        ({"steps": 1e3}, "steps is 1000.0: it must be int."),
        ({"seed": None}, "seed is None: it must be int."),
        ({"mesh": Mesh(fsdp="all")}, "mesh.fsdp is 'all': it must be int."),
        ({"optim": AdamW(peak_lr="1e-3", schedule=Constant())}, "optim.peak_lr is '1e-3': it must be float."),
        ({"optim": AdamW(peak_lr=1e-3, schedule="cosine")}, "optim.schedule is 'cosine': it must be "),
        ({"model": Mesh()}, "model is Mesh("),
        ({"rules": Rules(batch="data")}, "rules.batch is 'data': it must be tuple[str, ...]."),
        ({"rules": Rules(batch=("data", 3))}, "rules.batch is ('data', 3): it must be tuple[str, ...]."),
        ({"ramp": Ramp(stages=((1, 2), (3,)))}, "ramp.stages is ((1, 2), (3,)): it must be "),
        ({"compute": Compute(dtype="fp32")}, "compute.dtype is 'fp32': it must be "),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_with_the_type_that_its_field_has(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Mistake) as raised:
        config.check_types(dataclasses.replace(palm_tiny, **changes))
    assert str(raised.value).startswith(sentence)


def test_types_that_are_as_good_pass() -> None:
    config.check_types(palm_tiny)
    whole = AdamW(peak_lr=1, schedule=Constant(), clip_norm=None)  # an int for a float
    config.check_types(dataclasses.replace(palm_tiny, optim=whole, compile_cache=None))


# --- overrides --------------------------------------------------------------------------------------


def overridden(line: str, base: Node = palm_tiny) -> Any:
    return config.override(base, line.split(), "pretrain.launch", "")


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("--steps 7", "steps", 7),
        ("--steps=7", "steps", 7),
        ("--log-every 3", "log_every", 3),
        ("--log_every 3", "log_every", 3),
        ("--optim.peak-lr 1e-3", "optim.peak_lr", 1e-3),
        ("--optim.peak-lr 1", "optim.peak_lr", 1.0),
        ("--optim.schedule.warmup 5", "optim.schedule.warmup", 5),
        ("--optim.clip-norm None", "optim.clip_norm", None),
        ("--optim.clip-norm 0.5", "optim.clip_norm", 0.5),
        ("--compile-cache None", "compile_cache", None),
        ("--compile-cache /tmp/x", "compile_cache", "/tmp/x"),
        ("--sample.prompt class", "sample.prompt", "class"),
        ("--compute.dtype bfloat16", "compute.dtype", "bfloat16"),
        ("--mesh.fsdp 1 --mesh.data -1", "mesh.data", -1),
        ("--rules.residual-seq seq tensor", "rules.residual_seq", ("seq", "tensor")),
        ("--rules.seq", "rules.seq", ()),
        ("--ramp.stages 10 2 20 4", "ramp.stages", ((10, 2), (20, 4))),
        ("--data.mask-documents", "data.mask_documents", True),
    ],
)
def test_every_kind_of_leaf_can_be_overridden(line: str, path: str, value: object) -> None:
    before = config.leaves(palm_tiny)
    after = config.leaves(overridden(line))
    assert after[path] == value != before[path]
    assert type(after[path]) is type(value)
    named = {option.strip("-").replace("-", "_") for option in re.findall(r"--[\w.-]+", line)}
    assert {name for name in after if after[name] != before[name]} == named


def test_overrides_of_nothing_are_the_config_and_the_last_of_two_counts() -> None:
    assert overridden("") == palm_tiny
    assert overridden("--steps 3 --steps 4").steps == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--optim.peek-lr 1e-3", "there is no option --optim.peek-lr (did you mean '--optim.peak-lr'"),
        ("--stesp=3", "there is no option --stesp (did you mean '--steps'"),
        ("--batchsize 3", "there is no option --batchsize"),
        ("--optim AdamW", "there is no option --optim "),
        ("--optim.schedule Cosine", "(a component is swapped in a config file; there are --optim.schedule."),
        ("--steps many", "--steps: invalid literal for int() with base 10: 'many'"),
        ("--steps 1.5", "--steps: invalid literal for int() with base 10: '1.5'"),
        ("--optim.peak-lr fast", "--optim.peak-lr: could not convert string to float: 'fast'"),
        ("--compute.dtype float8", "invalid choice 'float8' for argument '--compute.dtype'. Expected one of"),
        ("--ramp.stages 10 2 20", "--ramp.stages"),
        ("--seed", "Missing value for argument '--seed'"),
        ("--steps 3 4", "4"),
        ("--seed 1 steps=3", "write --steps=3 "),
        ("optim.peak_lr=1e-3", "write --optim.peak_lr=1e-3 "),
        ("--data.mask-documents True", "--data.mask-documents and --data.no-mask-documents take no value"),
        ("--data.mask_documents=True", "--data.mask_documents and --data.no-mask_documents take no value"),
    ],
)  # fmt: skip
def test_an_option_that_is_none_or_a_value_that_does_not_fit_is_a_mistake(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Mistake) as raised:
        overridden(line)
    sentence = str(raised.value)
    assert words in sentence and "\n" not in sentence and sentence.endswith(".")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_is_the_same_on_a_terminal_of_any_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(Mistake) as raised:
        overridden("--compute.dtype float8")
    assert str(raised.value) == (
        "invalid choice 'float8' for argument '--compute.dtype'. "
        "Expected one of ('float32', 'bfloat16') (see --help)."
    )


def test_help_lists_every_leaf_with_its_meaning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # a wide terminal shows panels side by side
    with pytest.raises(SystemExit) as stopped:
        overridden("--help")
    assert stopped.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    leaves = [f"--{path.replace('_', '-')}" for path in config.leaves(palm_tiny)]
    parts = re.split(rf" (?=(?:{'|'.join(map(re.escape, leaves))})[ ,])", text)
    shown = {part.split()[0].rstrip(","): part for part in parts[1:]}
    assert set(shown) == set(leaves)
    # What is left without the option itself, the kind of its value, and its default.
    kinds = r"--\S+|\{.*?\}|\[.*?\]|\b[A-Z|]+\b|\(default.*"
    meanings = {option: re.sub(kinds, "", part) for option, part in shown.items()}
    assert [option for option, words in meanings.items() if not re.search(r"\w", words)] == []
    assert "optimizer steps of the whole run" in shown["--steps"]
    assert "learning rate at the peak of the schedule" in shown["--optim.peak-lr"]


# --- JSON and comparison ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        palm_tiny,
        dataclasses.replace(llama_tiny, optim=PaLMAdafactor(), ramp=Ramp(stages=((5, 2), (9, 4)))),
        Outer(inner=Inner(size=2, names=("a", "b")), stages=(Inner(size=3),), rate=None),
    ],
)
def test_a_config_comes_back_from_json_as_it_was(node: Node) -> None:
    back = config.from_json(json.loads(json.dumps(config.to_json(node))))
    assert back == node and repr(back) == repr(node)


def test_json_names_the_class_of_every_node_and_holds_its_fields() -> None:
    assert config.to_json(Outer(stages=(Inner(size=3),))) == {
        "class": f"{__name__}.Outer",
        "inner": {"class": f"{__name__}.Inner", "size": 1, "names": []},
        "stages": [{"class": f"{__name__}.Inner", "size": 3, "names": []}],
        "rate": 0.5,
    }


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "subprocess.Popen", "this.s", "pretrain.config.Mistake", "pretrain.config.nearest",
        "pretrain.nowhere.Node", "pretrain.models.palm.GPT2", "Inner", "", "None",
    ],
)  # fmt: skip
def test_json_that_names_anything_but_a_config_class_is_refused(name: str) -> None:
    """And nothing outside the package is imported: `this` would print a poem."""
    with pytest.raises(Mistake, match=f"names the class {re.escape(name)}, which is not one of"):
        config.from_json({"class": name, "size": 1})
    assert "this" not in sys.modules


def test_json_with_a_field_that_is_none_is_refused() -> None:
    values = config.to_json(Outer())
    values["inner"]["sizes"] = 3
    with pytest.raises(Mistake, match="Inner has no field 'sizes'"):
        config.from_json(values)


def test_a_class_of_a_config_file_comes_back_only_while_that_file_is_loaded(here: Path) -> None:
    (here / "own.py").write_text(
        "from pretrain.config import Node\nclass Own(Node):\n    size: int\nconfig = Own(size=3)"
    )
    values = config.to_json(config.load("own"))
    assert config.from_json(values).size == 3
    del sys.modules[values["class"].rpartition(".")[0]]
    with pytest.raises(Mistake, match="give the config file that defines it with --config"):
        config.from_json(values)


def test_a_difference_is_a_line_a_leaf_and_a_line_for_a_node_of_another_class() -> None:
    changed = dataclasses.replace(
        palm_tiny,
        steps=7,
        optim=dataclasses.replace(palm_tiny.optim, peak_lr=1.0, clip_norm=None),
        rules=Rules(seq=()),
        model=llama_tiny.model,
    )
    assert list(config.diff(palm_tiny, palm_tiny)) == []
    assert list(config.diff(palm_tiny, changed)) == [
        f"model: {palm_tiny.model} -> {llama_tiny.model}",
        f"optim.peak_lr: {palm_tiny.optim.peak_lr} -> 1.0",
        f"optim.clip_norm: {palm_tiny.optim.clip_norm} -> None",
        f"steps: {palm_tiny.steps} -> 7",
        "rules.seq: ('seq',) -> ()",
    ]
