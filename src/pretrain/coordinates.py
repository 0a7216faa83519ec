"""`python -m pretrain.coordinates --config NAME --widths 64,128,256`: does training look alike at all widths?

The coordinate check of muP (Yang et al., arXiv 2203.03466, appendix D.1): the model at several widths takes
a few steps, and the change of its activations since initialisation, on one batch, is compared. Under muP
it does not depend on the width; one that grows says that a learning rate tuned at one width is too large at
another. The exit status is 1 where muP is not flat. Fields of the run are options, as in launch.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain import command, config
from pretrain.config import Mistake
from pretrain.data.loader import Loader
from pretrain.models.attention import Context, Whole
from pretrain.models.positions import positions
from pretrain.parametrisation import MuP, Parametrisation, Standard, at_width
from pretrain.program import Program
from pretrain.run import Run, load
from pretrain.sharding import Mesh, use

ACTIVATIONS = ("embedding", "residual", "logits")
FLAT = 0.2  # of the slope of log change against log width; Standard's are about 0.5 and more
Batches = Sequence[Any]


@dataclass(frozen=True)
class Check:
    """What one parametrisation did at every width."""

    widths: tuple[int, ...]
    change: dict[str, np.ndarray]  # by activation: RMS of the change, [widths, steps]

    def slope(self, activation: str, step: int) -> float:
        """Of log change against log width after `step`, the first being 1."""
        sizes = self.change[activation][:, step - 1]
        return float(np.polyfit(np.log(self.widths), np.log(sizes), 1)[0])

    @property
    def steps(self) -> int:
        """How many steps each width took."""
        return next(iter(self.change.values())).shape[1]

    def fault(self) -> str:
        """What is not flat, in words; "" where nothing is.

        Nothing may grow, at any step. At the last one the residual stream may not fall either. Logits
        may: what the head was initialised with fades as the root of the width, by design.
        """
        for step in range(1, self.steps + 1):
            for name in self.change:
                if (slope := self.slope(name, step)) > FLAT:
                    return f"{name} grows with a slope of {slope:.2f} at step {step}"
        if (slope := self.slope("residual", self.steps)) < -FLAT:
            return f"residual falls with a slope of {slope:.2f} at step {self.steps}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain objects: changes and slopes by activation."""
        return {
            name: {
                "change": sizes.tolist(),
                "slopes": [self.slope(name, step) for step in range(1, sizes.shape[1] + 1)],
            }
            for name, sizes in self.change.items()
        }


def check(run: Run, parametrisation: Parametrisation, widths: Sequence[int], steps: int) -> Check:
    """Train the run at every width for a few steps, from the same data."""
    columns: dict[str, list[list[float]]] = {name: [] for name in ACTIVATIONS}
    for width in widths:
        wide = replace(run, model=at_width(run.model, width), parametrisation=parametrisation)
        for name, sizes in changes(wide, steps).items():
            columns[name].append(sizes)
    return Check(tuple(widths), {name: np.array(sizes) for name, sizes in columns.items()})


def changes(run: Run, steps: int) -> dict[str, list[float]]:
    """By activation, the RMS of its change on the first batch after each of the steps."""
    mesh = Mesh(fsdp=1).build(jax.devices()[:1])
    corpus = run.data.prepare(lambda text: None)
    found: dict[str, list[float]] = {name: [] for name in ACTIVATIONS}
    with use(mesh, run.rules):
        program = Program(run, mesh)
        loader = Loader(
            corpus.train, seq_len=run.seq_len, seed=run.seed,
            mask_documents=run.data.mask_documents,
            batch_rows=lambda step: run.ramp.rows(step, run.batch), sharding=program.batch_sharding,
        )  # fmt: skip
        first = loader.batch(0)
        look = jax.jit(lambda params: activations(program.graph, params, first["tokens_BT"]))
        state = program.initialise()
        before = look(state.params)
        for step in range(steps):
            state, metrics = program.train_step(state, loader.batch(step))
            if not math.isfinite(float(metrics["loss"])):
                raise Mistake(
                    f"the loss is not finite at width {run.model.d_model} after {step} steps: lower "
                    "--optim.peak-lr."
                )
            for name, x in look(state.params).items():
                found[name].append(float(rms(x - before[name])))
    return found


def activations(graph: nnx.GraphDef, params: Any, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """What the embedding, all blocks and the head give, in fp32."""
    model = nnx.merge(graph, params)
    where_BT = positions(tokens_BT)
    whole = Whole(model.compute.attention, None)
    context = Context(model.rotation(where_BT), whole, whole.recur)
    embedded_BTD = model.embed(tokens_BT, where_BT)
    residual_BTD = model.stack(embedded_BTD, context, model.compute.remat)
    given = {
        "embedding": embedded_BTD,
        "residual": residual_BTD,
        "logits": model.head()(model.hidden(tokens_BT))[..., : model.size.vocab],
    }
    return {name: x.astype(jnp.float32) for name, x in given.items()}


def rms(x: jax.Array) -> jax.Array:
    """Root mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


# --- what a person sees ---------------------------------------------------------------------------


def lines(checks: dict[str, Check]) -> Iterator[str]:
    """The slopes as a table: a row for each activation and step."""
    names = list(checks)
    yield "slope of log change against log width; 0 is flat"
    yield f"{'activation':<12}{'step':>5}" + "".join(f"{name:>12}" for name in names)
    first = next(iter(checks.values()))
    for activation in first.change:
        for step in range(1, first.steps + 1):
            slopes = "".join(f"{c.slope(activation, step):>12.2f}" for c in checks.values())
            yield f"{activation:<12}{step:>5}{slopes}"


def plot(checks: dict[str, Check], file: Path) -> None:
    """Change against width, a line for each step, a panel for each activation and parametrisation."""
    try:
        import matplotlib
    except ImportError as error:
        raise Mistake("--out needs matplotlib: install it, or leave --out away.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(checks), len(ACTIVATIONS), figsize=(10, 3.2 * len(checks)), dpi=130, squeeze=False,
        sharex=True, sharey="col",
    )  # fmt: skip
    for row, (name, found) in zip(grid, checks.items(), strict=True):
        for axes, (activation, sizes) in zip(row, found.change.items(), strict=True):
            steps = sizes.shape[1]
            for step in range(steps):
                colour = plt.get_cmap("viridis")(step / max(steps - 1, 1))
                axes.loglog(found.widths, sizes[:, step], "o-", color=colour, label=f"{step + 1}")
            axes.set_title(f"{name}: {activation}", fontsize=10)
            axes.set_xticks(found.widths, [str(width) for width in found.widths])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    grid[0][-1].legend(
        title="step", fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
    )
    for axes in grid[-1]:
        axes.set_xlabel("width")
    for row in grid:
        row[0].set_ylabel("RMS of the change")
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


# --- the command ----------------------------------------------------------------------------------


def parser() -> command.Options:
    """The options that are not fields of the run."""
    made = command.Options("pretrain.coordinates", __doc__, add_help=False)
    made.add_argument("--config", help="config file: a path, or a name in ./configs or the package")
    made.add_argument("--widths", default="64,128,256", help="values of model.d_model, ascending")
    made.add_argument("--training-steps", type=int, default=10, help="steps that each width takes")
    made.add_argument("--out", type=Path, help="a picture of the changes, PNG or SVG")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check that the command line asks for; the exit status."""
    return command.run("pretrain.coordinates", coordinates, arguments)


def coordinates(arguments: Sequence[str]) -> int:
    """What the command does: the run as it stands, and under muP from the smallest width."""
    made = parser()
    options, overrides = made.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        print(made.format_help())
        options.config = options.config or "palm_tiny.py"
    if options.config is None:
        raise Mistake("name a config with --config.")
    run = load(options.config)
    run = config.override(run, overrides, made.prog, "fields of the run, with their values now")
    run.check()
    widths = parsed(options.widths)
    if options.training_steps < 1:
        raise Mistake(f"--training-steps is {options.training_steps}: make it 1 or more.")
    muP = run.parametrisation if isinstance(run.parametrisation, MuP) else MuP(base_width=widths[0])
    checks = {
        "standard": check(run, Standard(), widths, options.training_steps),
        "muP": check(run, muP, widths, options.training_steps),
    }
    if options.out is not None:
        plot(checks, options.out)
    fault = checks["muP"].fault()
    if options.json:
        found = {name: one.to_json() for name, one in checks.items()}
        print(json.dumps({"widths": widths, "flat": not fault, **found}, indent=1))
    else:
        print(*lines(checks), sep="\n")
        print(f"muP is not flat: {fault}" if fault else f"muP is flat, to a slope of {FLAT:g}")
    return int(bool(fault))


def parsed(text: str) -> list[int]:
    """Widths from "64,128,256". Raises Mistake where they are not two or more, ascending."""
    try:
        widths = [int(word) for word in text.split(",")]
    except ValueError:
        raise Mistake(f"--widths is {text!r}: give whole numbers, such as 64,128,256.") from None
    if len(widths) < 2 or widths != sorted(set(widths)) or widths[0] < 1:
        raise Mistake(f"--widths is {text!r}: give two or more, ascending, such as 64,128,256.")
    return widths


if __name__ == "__main__":
    sys.exit(main())
