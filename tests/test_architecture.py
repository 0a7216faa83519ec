"""The shape of the house: what imports what, how long things are, what is declared and documented."""

import ast
import dataclasses
import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain, pairwise
from pathlib import Path

import pytest

from pretrain import config, describe, launch
from pretrain.config import Node

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pretrain"
FILES = sorted(SOURCE.rglob("*.py"))
CODE = [*FILES, *(path for part in ("configs", "tools") for path in ROOT.glob(f"{part}/*.py"))]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = ("src", "configs", "tests", "docs", "tools", "launch")
TEXTS = sorted(
    path
    for pattern in ("*", ".ci/*", *(f"{folder}/**/*" for folder in FOLDERS))
    for path in ROOT.glob(pattern)
    if path.is_file() and "__pycache__" not in path.parts
)


def module(path: Path) -> str:
    parts = ("pretrain", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- imports --------------------------------------------------------------------------------------


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and for types too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{shown(path)} has a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def table() -> list[str]:
    """The modules in the order of the tables of docs/design.md."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs" / "design.md").read_text(), re.M)
    return [module(SOURCE / row) for row in rows]


def test_the_design_lists_every_file_once():
    """Packages whose `__init__.py` imports nothing are no file to read."""
    bare = {n for n, p in MODULES.items() if p.name == "__init__.py" and not list(imported(p))}
    assert MODULES.keys() - bare - set(table()) == set(), "files without a row"
    assert set(table()) - MODULES.keys() == set(), "rows without a file"
    assert len(table()) == len(set(table()))


def test_every_file_imports_only_what_stands_below_it_in_the_design():
    """So imports point down, and there is no cycle."""
    floor = {name: row for row, name in enumerate(table())}
    upward = [
        f"{name} imports {other}"
        for name in floor
        for other in imported(MODULES[name])
        if other in floor and floor[other] <= floor[name]
    ]
    assert upward == []


def test_the_order_of_the_design_is_that_of_the_house():
    houses = ("launch", "train", "step", "objectives", "models.model", "sharding", "config")
    floors = [table().index(f"pretrain.{name}") for name in houses]
    assert floors == sorted(floors)
    assert table().index("pretrain.step") < table().index("pretrain.optim") < floors[4]


def test_the_package_imports_only_what_it_depends_on():
    """A package that comes along with another one may go with it; `plots` is what plots ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["plots"]]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in needed}
    owners = packages_distributions()
    undeclared = {
        (shown(path), name)
        for path in FILES
        for name in {name.split(".")[0] for name in imported(path)} - {"pretrain"}
        if name not in sys.stdlib_module_names
        and declared.isdisjoint(owner.lower() for owner in owners.get(name, [name]))
    }
    assert undeclared == set()


def test_no_file_imports_at_its_top_what_few_commands_need():
    """Seconds of a start: these belong into the function that uses them."""
    heavy = {"orbax", "tensorboard", "pyarrow", "tokenizers", "sentencepiece", "rich", "tyro"}
    for path in FILES:
        top = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = chain(
            *([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] for n in top)
        )
        assert not {str(name).split(".")[0] for name in names} & heavy, shown(path)


def test_every_tool_that_is_run_has_help():
    for path in ROOT.glob("tools/*.py"):
        text = path.read_text()
        assert ("__main__" in text) == ("ArgumentParser(" in text), shown(path)


# --- sizes and names ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=shown)
def test_files_and_functions_are_short(path: Path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_files_are_named_for_what_they_are():
    vague = {"utils", "util", "common", "misc", "helpers", "base", "core"}
    assert not {path.stem for path in CODE} & vague


def below(cls: type) -> Iterator[type]:
    for derived in cls.__subclasses__():
        yield derived
        yield from below(derived)


def nodes() -> set[type]:
    """Every config class of the package."""
    for name in MODULES:
        importlib.import_module(name)
    return {cls for cls in below(Node) if cls.__module__ in MODULES}


def own(cls: type) -> set[str]:
    """The fields that a class adds to those of its bases."""
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    return {field.name for field in dataclasses.fields(cls)} - inherited


def test_there_are_fewer_than_150_settings_beside_the_sizes_of_architectures():
    """An architecture's fields are its paper's numbers; a setting is a choice that someone must make."""
    settings = [cls for cls in nodes() if not cls.__module__.startswith("pretrain.models.")]
    assert 50 < sum(len(own(cls)) for cls in settings) < 150


def test_no_run_has_100_fields():
    from pretrain.configs.palm_540b import config as palm
    from pretrain.configs.yalm_100b import config as yalm

    for run in (palm, yalm):
        assert 30 < len(config.leaves(run)) < 100


def test_every_field_says_what_it_is_in_a_comment():
    """Behind it, inside its brackets or on the line above: the comment is its --help."""
    names = {cls.__qualname__ for cls in nodes()}
    for path in FILES:
        lines = path.read_text().splitlines()
        for cls in [node for node in tree(path).body if isinstance(node, ast.ClassDef)]:
            for field in cls.body if cls.name in names else []:
                if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(
                    field.annotation
                ):
                    assert field.end_lineno is not None
                    own_lines = lines[field.lineno - 1 : field.end_lineno]
                    above = lines[field.lineno - 2].strip().startswith("#")
                    assert above or any("  # " in line for line in own_lines), (
                        f"{shown(path)}:{field.lineno} {ast.unparse(field)}"
                    )


# --- texts ----------------------------------------------------------------------------------------

# In two halves each, so that this file does not hold them; a path begins where no word goes on.
HOSTS = [
    ("py", r"pi\.org"),
    ("python", r"hosted\.org"),
    ("registry.npm", r"js\.org"),
    ("deb.", "debian"),
]
PATHS = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", r"me/\w"), ("/Us", "ers/")]
FOREIGN = "|".join(
    [*(first + second for first, second in HOSTS), *(rf"(?<![\w.$~]){a}{b}" for a, b in PATHS)]
)


def test_no_text_names_a_package_index_or_a_path_of_one_machine():
    for path in TEXTS:
        found = re.search(FOREIGN, path.read_text("utf-8", "replace"))
        assert not found, f"{shown(path)} has {found[0]!r}" if found else ""


def test_every_relative_link_of_the_documents_leads_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{shown(path)} links to {target}"


def test_every_heading_that_the_documents_link_to_exists():
    for path in DOCUMENTS:
        for target, heading in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", path.read_text()):
            text = (path.parent / target if target else path).read_text()
            titles = [
                re.sub(r"[^\w\- ]", "", t).lower() for t in re.findall(r"^#+ (.*)$", text, re.M)
            ]
            assert heading in [title.replace(" ", "-") for title in titles], (
                f"{shown(path)}: #{heading}"
            )


def commands() -> Iterator[tuple[str, str]]:
    """Every command of ours that starts from a config of ours: (program, arguments).

    What follows a "$ " is shown with its output, a mistake as a rule, and `--help` ends a command.
    """
    for path in [*DOCUMENTS, *ROOT.glob("configs/*.py"), ROOT / ".ci" / "run"]:
        text = path.read_text().replace("\\\n", " ")
        for program, line in re.findall(
            r"^(?! *\$ ).*pretrain\.(launch|describe) ([^`#>&\n]*)", text, re.M
        ):
            words = shlex.split(re.sub(r'"\$\{\w+\[@\]\}"', "", line))
            named = [
                ROOT / "configs" / after for word, after in pairwise(words) if word == "--config"
            ]
            if named and named[0].is_file() and "--help" not in words:
                yield program, shlex.join(words)


@pytest.mark.parametrize("program, line", sorted(set(commands())))
def test_every_command_of_the_documents_is_one(program: str, line: str):
    """Its options exist, their values have the right types, and the run passes all checks."""
    made = {"launch": launch, "describe": describe}[program].parser()
    options, overrides = made.parse_known_args(shlex.split(line))
    run = config.load(str(ROOT / "configs" / options.config))
    run = config.override(run, overrides, program, "")
    run.check()
    if devices := getattr(options, "devices" if program == "describe" else "cpu_devices"):
        run.check_layout(run.mesh.sizes(devices * (getattr(options, "processes", None) or 1)))


def configs() -> Iterator[tuple[str, str]]:
    """Every config that a document writes out: (document, Python)."""
    for path in DOCUMENTS:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
            if re.search(r"^config = ", block, re.M):
                yield shown(path), block


@pytest.mark.parametrize("document, text", list(configs()))
def test_every_config_of_the_documents_is_one(document: str, text: str, tmp_path: Path):
    file = tmp_path / "written_out.py"
    file.write_text(text)
    config.load(str(file)).check()


def test_the_readme_has_the_default_config_as_it_is():
    assert (ROOT / "configs" / "palm_tiny.py").read_text() in (ROOT / "README.md").read_text()
