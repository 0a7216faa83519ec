"""Config nodes: frozen, keyword-only dataclasses, loaded from a Python file, overridden, compared.

A config file is Python that binds `config`. Once it is loaded a config is only a value: it is written
as inert JSON, read back without running anything, and compared field by field.
"""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.resources
import importlib.util
import io
import itertools
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, dataclass_transform


class Mistake(Exception):
    """A user's mistake. Its text is one sentence that names the thing and the fix.

    Commands print the sentence alone and exit with status 2; nothing else may be raised for input
    that a user can get wrong.
    """


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Node:
    """Base of every config class. A subclass is a frozen, keyword-only dataclass, without a decorator.

    Fields hold what a person chooses, never what can be derived. A component is swapped by
    constructing another subclass in the config file, never by naming it in a string. The comment
    behind a field is its `--help`.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __new__(cls, *args: object, **kwargs: object) -> "Node":
        """Refuses a misspelt or missing field before the dataclass's own TypeError would."""
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # Node itself has no fields
        if args:
            raise Mistake(
                f"{cls.__name__} takes its fields by name: {cls.__name__}({next(iter(known))}=...)."
            )
        for name in kwargs:
            if name not in known:
                raise Mistake(f"{cls.__name__} has no field {name!r}{nearest(name, known)}.")
        required = [
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in required if name not in kwargs]
        if missing:
            raise Mistake(f"{cls.__name__} needs {', '.join(missing)}: give it a value.")
        return super().__new__(cls)


def nearest(name: str, among: typing.Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of some names, or a list of them where none is near."""
    among = list(among)
    near = difflib.get_close_matches(name, among, n=3, cutoff=0.6)
    if near:
        return f" (did you mean {' or '.join(map(repr, near))}?)"
    return f" (there are {', '.join(among)})" if len(among) <= 12 else ""


# --- files ------------------------------------------------------------------------------------------


def find(name: str, folder: str = "") -> Path:
    """The file that a config name means: a path, in ./configs, or in the installed package.

    With a `folder`, such as "sweeps", it is that one of ./configs and of the package.
    """
    installed = importlib.resources.files("pretrain.configs")
    places = [Path(), Path("configs", folder), Path(str(installed), folder)]
    file = name if name.endswith(".py") else f"{name}.py"
    for place in places:
        if (place / file).is_file():
            return place / file
    known = sorted(
        {path.name for place in places[1:] for path in place.glob("*.py")} - {"__init__.py"}
    )
    if Path(name).exists():
        raise Mistake(
            f"{name} is not a Python file: a config is one that binds `config`, and a run directory "
            "goes on with `pretrain.launch --run`."
        )
    searched = f"the path itself, ./{places[1]}, the configs of the installed package"
    raise Mistake(
        f"there is no config {name!r}{nearest(Path(file).name, known)}; searched: {searched}."
    )


def load(name: str, binding: str = "config", folder: str = "") -> Any:
    """What the config file `name` binds to `binding`; `find` says where it is looked for."""
    module = executed(name, folder)
    if not hasattr(module, binding):
        path = find(name, folder)
        raise Mistake(f"{path} does not bind `{binding}`: end it with `{binding} = ...`.")
    return getattr(module, binding)


def executed(name: str, folder: str = "") -> ModuleType:
    """The config file `name` as a module."""
    path = find(name, folder)
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # so that classes defined in the file can be found again
    try:
        spec.loader.exec_module(module)
    except Mistake as mistake:
        raise Mistake(f"{path}, line {_line(mistake, spec.origin)}: {mistake}") from None
    except Exception as error:
        line, kind = _line(error, spec.origin), type(error).__name__
        said = " ".join(str(error).split()).rstrip(".")  # some errors have several lines
        raise Mistake(f"{path}, line {line}: {kind}: {said}.") from error
    return module


def _line(error: BaseException, file: str | None) -> int:
    """The last line of `file`, as its loader calls it, that led to the error."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# --- overrides --------------------------------------------------------------------------------------


def override(config: Any, arguments: Sequence[str], prog: str, description: str) -> Any:
    """`config` with typed overrides such as `--optim.peak-lr 3e-3`; `--help` prints them all and exits.

    Raises Mistake for an unknown option (with a suggestion) or a value of another type.
    """
    import tyro

    values = leaves(config)
    known = {f"--{path.replace('_', '-')}": None for path in values}
    for argument in arguments:
        option = argument.split("=")[0].replace("_", "-")
        positive = re.sub(r"(^--|\.)no-", r"\1", option)
        if option.startswith("--") and option != "--help" and not {option, positive} & known.keys():
            inside = [name for name in known if name.startswith(f"{option}.")]
            swapped = f" (a component is swapped in a config file; there are {', '.join(inside[:3])}, ...)"
            near = swapped if inside else nearest(option, known)
            raise Mistake(f"there is no option {argument.split('=')[0]}{near}.")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                type(config), default=config, args=list(arguments), prog=prog,
                description=description, config=(tyro.conf.AvoidSubcommands,),
            )  # fmt: skip
    except SystemExit as stop:
        if stop.code == 0:
            raise
        complaint = _complaint(printed.getvalue())
        raise Mistake(f"{complaint}{_meant(complaint, arguments, values)} (see --help).") from None


def _complaint(box: str) -> str:
    """What tyro says between the first two rules of its box, which is drawn in ASCII on some terminals."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    parts = itertools.groupby(lines, key=lambda line: bool(line.strip("─-")))
    return " ".join(next(part for said, part in parts if said)).rstrip(".")


def _meant(complaint: str, words: Sequence[str], values: Mapping[str, Any]) -> str:
    """What a word was meant to be that no option takes: `steps=3`, or the value of a switch."""
    for before, word in itertools.pairwise(["", *words]):
        name, equals, value = word.partition("=")
        if equals and word in complaint and name.replace("-", "_") in values:
            return f": write --{word}"
        switch = name if equals else before
        given = values.get(switch.removeprefix("--").replace("-", "_"))
        if isinstance(given, bool) and (value or word) in complaint:
            opposite = re.sub(r"(--|\.)([\w-]+)$", r"\1no-\2", switch)
            return f": {switch} and {opposite} take no value"
    return ""


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config by its dotted path."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value, path = getattr(node, field.name), prefix + field.name
        if isinstance(value, Node):
            found |= leaves(value, f"{path}.")
        else:
            found[path] = value
    return found


def check_types(config: Node, prefix: str = "") -> None:
    """Raises Mistake for the first field whose value is not of its type, naming both."""
    import typeguard

    every_item = typeguard.CollectionCheckStrategy.ALL_ITEMS
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # Node itself has no fields
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        try:
            typeguard.check_type(value, hints[field.name], collection_check_strategy=every_item)
        except typeguard.TypeCheckError:
            wanted = str(hints[field.name]).removeprefix("<class '").removesuffix("'>")
            raise Mistake(f"{path} is {value!r}: it must be {wanted}.") from None
        if isinstance(value, Node):
            check_types(value, f"{path}.")


# --- JSON and comparison ----------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A config as inert JSON: each node an object that names its class and holds its fields."""
    if isinstance(value, Node):
        cls = type(value)
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]  # as above
        return {"class": f"{cls.__module__}.{cls.__qualname__}", **fields}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(value: Any) -> Any:
    """The config that `to_json` wrote. Only classes of this package, or already imported, are built.

    Raises Mistake for any other class: nothing in a run directory decides what code is imported.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    return _class(str(value.get("class")))(**fields)


def _class(name: str) -> type[Node]:
    module, _, cls = name.rpartition(".")
    if module.startswith("pretrain."):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), cls, None)
    if not (isinstance(found, type) and issubclass(found, Node)):
        raise Mistake(
            f"config.json names the class {name}, which is not one of this package's config classes: "
            "give the config file that defines it with --config as well."
        )
    return found


def diff(old: Node, new: Node) -> Iterator[str]:
    """One line a difference, `path: old -> new`; a node of another class is one difference."""
    yield from _diff("", old, new)


def _diff(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Node) and type(old) is type(new):
        for field in dataclasses.fields(old):  # type: ignore[arg-type]  # Node itself has no fields
            inner = f"{path}.{field.name}" if path else field.name
            yield from _diff(inner, getattr(old, field.name), getattr(new, field.name))
    elif old != new:
        yield f"{path}: {old} -> {new}"
