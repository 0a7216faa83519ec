"""`python -m pretrain.coordinates --config NAME --widths 64,128,256`: does training look alike at all widths?

The coordinate check of muP (Yang et al., arXiv 2203.03466, appendix D.1): the model at several widths takes
a few steps, and what its activations and tensors do is compared. Under muP they start and move alike at
every width; what grows says that a learning rate tuned at one width is too large at another. The exit
status is 1 where muP is not as the theory has it. Fields of the run are options, as in launch.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import command, config
from pretrain.config import Mistake
from pretrain.growth import ACTIVATIONS, EMBEDDING, INITIAL, Growth, Sizes, growth
from pretrain.models.model import Architecture
from pretrain.parametrisation import MuP, Parametrisation, Standard, at_width, weights
from pretrain.run import Run, load

PROG = "pretrain.coordinates"
TOLERANCE = 0.25  # of a slope: half of what the least multiplier makes that could be missing
FLAT = (0.0, 0.0)
# At a finite width n: of many directions, of which none stands out, n^-1/2 is left; of one, all.
FADING = (-0.5, 0.0)
Range = tuple[float, float]


@dataclass(frozen=True)
class Check:
    """What one parametrisation did at every width."""

    widths: tuple[int, ...]
    growth: Growth  # [widths, 1 + steps]
    narrowing: frozenset[str]  # matrices with as many outputs at every width, such as output heads

    def slopes(self, name: str) -> np.ndarray:
        """Of log size against log width, at the start and after each step; NaN where a size is 0."""
        return slopes(self.widths, self.growth.sizes[name])

    def theory(self, name: str, step: int) -> Range:
        """The slopes of a size that muP allows after `step`, 0 being the start.

        Tables 3 and 8 of Yang et al. make every tensor, and what is embedded, the same at all widths:
        Theta(1). What comes of matrices that change in many directions at once is no more than that.
        """
        if step == 0:
            return FADING if name == INITIAL or name in self.narrowing else FLAT
        if name == EMBEDDING:
            return FLAT
        # A vector may stand still: softmax sees no bias of keys, and AdamW's eps stops small gradients.
        return FADING if name in ACTIVATIONS or name in self.growth.aligned else (-np.inf, 0.0)

    def fault(self) -> str:
        """What is not as the theory has it, in words; "" where nothing is."""
        for name in self.growth.sizes:
            for step, slope in enumerate(self.slopes(name)):
                if said := beyond(slope, self.theory(name, step)):
                    return f"{name} {said} {when(step)}"
        for name, sizes in self.growth.aligned.items():
            for step, slope in enumerate(slopes(self.widths, sizes)[1:], start=1):
                # Were all inputs alike, a matrix would have to change as much at every width.
                if said := beyond(slope, (0.0, np.inf)):
                    return f"{name}, by its entries, {said} {when(step)}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain objects: sizes and slopes by name."""
        return {
            name: {
                "sizes": sizes.tolist(),
                "slopes": [None if np.isnan(x) else float(x) for x in self.slopes(name)],
            }
            for name, sizes in self.growth.sizes.items()
        }


def slopes(widths: Sequence[int], sizes: np.ndarray) -> np.ndarray:
    """Of log size, [widths, steps], against log width; NaN where a size is 0."""
    with np.errstate(divide="ignore"):
        logs = np.where(sizes.min(axis=0) > 0, np.log(sizes), np.nan)
    x = np.log(widths) - np.log(widths).mean()
    return x @ (logs - logs.mean(axis=0)) / (x @ x)


def beyond(slope: float, allowed: Range) -> str:
    """How a slope is out of what is allowed, in words; "" where it is not, or is NaN."""
    low, high = allowed
    if slope > high + TOLERANCE:
        return f"grows with a slope of {slope:.2f}"
    return f"falls with a slope of {slope:.2f}" if slope < low - TOLERANCE else ""


def when(step: int) -> str:
    """A step in words."""
    return f"at step {step}" if step else "at the start"


def check(run: Run, parametrisation: Parametrisation, widths: Sequence[int], steps: int) -> Check:
    """Train the run at every width for a few steps, from the same data, and tell of each."""
    runs = [
        replace(run, model=at_width(run.model, width), parametrisation=parametrisation)
        for width in widths
    ]
    found = []
    for width, wide in zip(widths, runs, strict=True):
        kind = type(parametrisation).__name__
        print(f"{PROG}: {steps} steps at width {width:,}, {kind}", file=sys.stderr)
        found.append(growth(wide, steps))
    return compared(run.model, widths, found)


def compared(model: Architecture, widths: Sequence[int], found: Sequence[Growth]) -> Check:
    """What a model did, width by width."""
    ends = [weights(at_width(model, width)).by_name for width in (widths[0], widths[-1])]
    kept = {n for n in found[0].aligned if ends[0][n].outputs == ends[1][n].outputs}

    def stacked(columns: Sequence[Sizes]) -> Sizes:
        return {name: np.stack([column[name] for column in columns]) for name in columns[0]}

    sizes = stacked([one.sizes for one in found])
    whole = Growth(sizes, stacked([one.aligned for one in found]))
    return Check(tuple(widths), whole, frozenset(kept))


# --- what a person sees ---------------------------------------------------------------------------


def lines(name: str, found: Check) -> Iterator[str]:
    """The slopes as a table: a row for each activation and tensor, a column for each step."""
    steps = next(iter(found.growth.sizes.values())).shape[1] - 1
    longest = max(map(len, found.growth.sizes))
    yield f"{name}: slope of log size against log width, at the start and of the change after each step"
    yield f"{'':<{longest}}{'start':>7}" + "".join(f"{step:>7}" for step in range(1, steps + 1))
    for row in found.growth.sizes:
        cells = ("" if np.isnan(x) else f"{x:.2f}" for x in found.slopes(row))
        yield f"{row:<{longest}}" + "".join(f"{cell:>7}" for cell in cells)


def check_picture(file: Path) -> None:
    """Raises Mistake, before minutes of training, where no picture can be drawn or kept."""
    if find_spec("matplotlib") is None:
        raise Mistake("--out needs matplotlib: install it, or leave --out away.")
    if not file.parent.is_dir():
        raise Mistake(
            f"{file} cannot be written (there is no {file.parent}): choose another --out."
        )


def plot(checks: Mapping[str, Check], file: Path) -> None:
    """Change against width, a line for each step, a panel for each activation and parametrisation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(checks), len(ACTIVATIONS), figsize=(11, 3.0 * len(checks)), dpi=130, squeeze=False,
        sharex=True, sharey="col", layout="constrained",
    )  # fmt: skip
    for row, (name, found) in zip(grid, checks.items(), strict=True):
        row[0].set_ylabel(f"{name}\nRMS of the change")
        for axes, activation in zip(row, ACTIVATIONS, strict=True):
            changes = found.growth.sizes[activation][:, 1:].T
            for step, sizes in enumerate(changes, start=1):
                colour = plt.get_cmap("viridis")((step - 1) / max(len(changes) - 1, 1))
                axes.loglog(found.widths, sizes, "o-", ms=3, color=colour, label=f"{step}")
            axes.set_xticks(found.widths, [str(width) for width in found.widths])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    for axes, activation in zip(grid[0], ACTIVATIONS, strict=True):
        axes.set_title(activation, fontsize=10)
    figure.legend(*grid[0][0].get_legend_handles_labels(), title="step", fontsize=8,
                  loc="outside right center", frameon=False)  # fmt: skip
    for axes in grid[-1]:
        axes.set_xlabel("width")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise Mistake(f"{file} cannot be written ({error}): choose another --out.") from error
    finally:
        plt.close(figure)


# --- the command ----------------------------------------------------------------------------------


def parser() -> command.Options:
    """The options that are not fields of the run."""
    made = command.Options(PROG, __doc__, add_help=False)
    made.add_argument("--config", help="config file: a path, or a name in ./configs or the package")
    made.add_argument("--widths", default="64,128,256", help="values of model.d_model, ascending")
    made.add_argument("--training-steps", type=int, default=10, help="steps that each width takes")
    made.add_argument("--out", type=Path, help="a picture of the changes, PNG or SVG")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check that the command line asks for; the exit status."""
    return command.run(PROG, coordinates, arguments)


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
    if options.out is not None:
        check_picture(options.out)
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
        print(json.dumps({"widths": widths, "flat": not fault, "fault": fault, **found}, indent=1))
        return int(bool(fault))
    for name, one in checks.items():
        print(*lines(name, one), "", sep="\n")
    said = f"not as the theory has it: {fault}" if fault else f"flat, to a slope of {TOLERANCE:g}"
    print(f"muP is {said}")
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
