"""The page of models, from the configs: `python tools/models.py > docs/models.md`."""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path

import jax
from flax import nnx

from pretrain import config
from pretrain.describe import devices_for
from pretrain.flops import Parameters, count
from pretrain.interop import hf
from pretrain.run import Run
from pretrain.sharding import use

ROOT = Path(__file__).parents[1]
BINDINGS = {
    "published_parameters": "",
    "published_non_embedding_parameters": " without embeddings",
}
INTRODUCTION = """# Models

Every published model that has a config in [configs/](../configs). Parameters are counted from the
shapes of the model as it is built, rows that only pad a vocabulary left out; a test compares them with
the published number to less than one of its last digit. Where the two differ by more than rounding,
the docstring of the config says why, as it says which paper and table each number of the recipe is
from, and what the paper leaves open.

Recipes are the published ones: optimizer, schedule, batch and its rise, tokens, context, dropout,
z-loss. What is published in tokens or sequences is given in steps, and is exact where it ends. All
presets compute in bfloat16: where a paper had it otherwise, the docstring says so.

    python -m pretrain.describe --config bloom_176b.py --devices 512 --mesh.tensor 8 --mesh.seq 4

This page is written by `python tools/models.py > docs/models.md`, and a test compares it.
"""


@dataclass(frozen=True)
class Model:
    """A published model: what its config file says, and what it amounts to."""

    name: str  # of the file: "llama2_7b"
    title: str  # "LLaMA 2 7B"
    paper: str  # "Touvron et al., arXiv 2307.09288"
    recipe: str  # where in the paper, or in what else, the training is described
    published: str  # as written, "6.74e9"
    of: str  # what the published number leaves out
    run: Run
    parameters: Parameters

    @property
    def counted(self) -> int:
        """The parameters that the published number is about."""
        return self.parameters.non_embedding if self.of else self.parameters.total

    @property
    def tokens(self) -> int:
        """What the whole run reads."""
        return self.run.ramp.rows(self.run.steps, self.run.batch)[0] * self.run.seq_len


def counted(run: Run) -> Parameters:
    """How many parameters a run's model has, by abstract evaluation on the mesh that it is for."""
    mesh = run.mesh.abstract(devices_for(run.mesh, None))
    with use(mesh, run.rules):
        build = jax.eval_shape(lambda: run.model.build(nnx.Rngs(run.seed), run.compute))
        _, variables = nnx.split(build)
        dims = nnx.to_pure_dict(variables, lambda variable: variable.get_metadata("dims"))
        return count(dims, nnx.to_pure_dict(variables), run.model.vocab)


def models(counted: Callable[[Run], Parameters]) -> Iterator[Model]:
    """Every published model of configs/, by file name."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text()
        written = re.search(r"^(published_\w+) = (\S+)$", text, re.M)
        if written is None:
            continue
        title, paper, recipe = heading(text)
        of = BINDINGS[written[1]]
        run = config.load(str(path))
        yield Model(path.stem, title, paper, recipe, written[2], of, run, counted(run))


def heading(text: str) -> tuple[str, str, str]:
    """Title, paper and recipe of a config file, from the first sentence of its docstring.

    It reads "Title (paper): where." or "Title (paper).", and may take more than a line.
    """
    first = " ".join(text.removeprefix('"""').split("\n\n")[0].split())
    matched = re.fullmatch(r"(.*?) \((.*)\)(?:: (.*))?\.", first)
    assert matched, f"no docstring starts with {first!r}"
    return matched[1], matched[2], matched[3] or ""


def proven(model: Model) -> str:
    """What the class's logits are compared with, and the files of tests that do it."""
    node = type(model.run.model)
    for family in hf.FAMILIES.values():
        if node in family.nodes:
            files = links("test_hf_*.py", rf'parity\(\s*"{family.model_type}"')
            return f"`{family.architecture}`: {files}"
    files = links("*_reference.py", rf"\b{node.__name__}: ")  # a row of the table of families there
    return f"numpy, in float64: {files}"


def links(pattern: str, text: str) -> str:
    """A link to every file of tests/ of that name that has such a text."""
    paths = sorted((ROOT / "tests").glob(pattern))
    files = [path.name for path in paths if re.search(text, path.read_text())]
    return ", ".join(f"[{name}](../tests/{name})" for name in files) or "nothing yet"


def page(counted: Callable[[Run], Parameters]) -> str:
    """The whole page."""
    every = sorted(models(counted), key=lambda model: (model.paper, model.counted))
    papers = [list(group) for _, group in groupby(every, key=lambda model: model.paper)]
    papers.sort(key=lambda group: family(group).lower())
    families = [overview(group) for group in papers]
    sizes = [details(model) for group in papers for model in group]
    parts = [
        INTRODUCTION,
        "## Families\n",
        *table("family | sizes | class | proven against | paper", families),
        "\n## Sizes and recipes\n",
        *table("model | config | published | counted | tokens | recipe", sizes),
    ]
    return "\n".join(parts) + "\n"


def table(head: str, rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table in Markdown."""
    columns = head.split(" | ")
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def family(group: list[Model]) -> str:
    """The words that the titles of a paper's models begin with, before their sizes."""
    words = zip(*(model.title.split() for model in group), strict=False)
    same = takewhile(lambda column: len(set(column)) == 1, words)
    name = takewhile(lambda word: not re.match(r"[\d.]+[MB]", word), (word for word, *_ in same))
    return " ".join(name)


def overview(group: list[Model]) -> tuple[str, ...]:
    """The row of a family."""
    name, [first, *_] = family(group), group
    sizes = [model.title.removeprefix(name).split(",")[0].strip() or model.title for model in group]
    node = type(first.run.model)
    file = f"../src/{node.__module__.replace('.', '/')}.py"
    return name, ", ".join(sizes), f"[`{node.__name__}`]({file})", proven(first), first.paper


def details(model: Model) -> tuple[str, ...]:
    """The row of a model."""
    return (
        model.title,
        f"[{model.name}](../configs/{model.name}.py)",
        rounded(model.published) + model.of,
        f"{model.counted:,}",
        f"{model.tokens / 1e9:,.0f} B",
        model.recipe,
    )


def rounded(written: str) -> str:
    """A published number as people write it: "6.74e9" is 6.74 B; one to its last digit stays whole."""
    digits, _, exponent = written.replace("_", ",").partition("e")
    return f"{digits} {dict(e6='M', e9='B')['e' + exponent]}" if exponent else digits


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # there is --help, and nothing else
    print(page(counted), end="")
