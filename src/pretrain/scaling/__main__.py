"""Scaling laws: fit them to runs, predict with them, draw them.

python -m pretrain.scaling fit runs/isoflop_tiny --out fit.json     # or a CSV with N, D, loss
python -m pretrain.scaling predict fit.json --flops 1e15
python -m pretrain.scaling predict fit.json --flops 1e15 --config palm_tiny.py --out large.py
python -m pretrain.scaling plot runs/isoflop_tiny --out report/
python -m pretrain.scaling count --config palm_tiny.py              # parameters and FLOPs
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from pretrain import command, config, launch
from pretrain.config import Mistake
from pretrain.forecast import Forecast
from pretrain.scaling import fit as fits
from pretrain.scaling import sources, summary
from pretrain.scaling.envelope import envelope
from pretrain.scaling.forms import FORMS
from pretrain.scaling.held_back import hold_back
from pretrain.scaling.isoflop import isoflop
from pretrain.scaling.points import Points
from pretrain.scaling.tuning import tuning

TUNED = {"learning-rate": "lr", "batch": "batch"}
APPROACHES = ("isoflop", "envelope")
FEWEST = 40  # resamples: one of them to each side is 2.5 %


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    # Fits are small and need float64, which accelerators have little or nothing of.
    jax.config.update("jax_platforms", "cpu")
    return command.run("pretrain.scaling", scaling, arguments)


def parser() -> command.Options:
    """The four commands and their options."""
    made = command.Options("pretrain.scaling", __doc__)
    commands = made.add_subparsers(dest="command", metavar="fit | predict | plot | count")
    fitting = commands.add_parser("fit", description="Fit a law to runs.")
    fitting.add_argument("runs", help="a CSV with the columns N, D, loss, or a directory of runs")
    fitting.add_argument(
        "--form", default="chinchilla", choices=[*FORMS, *APPROACHES, *TUNED],
        help="the law, or approach 1 (envelope) or 2 (isoflop); default chinchilla",
    )  # fmt: skip
    fitting.add_argument(
        "--resamples", type=int, default=1000, help="bootstrap resamples; default 1000"
    )
    fitting.add_argument("--seed", type=int, default=0, help="of the bootstrap; default 0")
    fitting.add_argument("--out", type=Path, help="file for the fit, which predict reads")
    fitting.add_argument("--json", action="store_true", help="print one JSON object")
    predicting = commands.add_parser("predict", description="What a fit says of a budget.")
    predicting.add_argument("fit", type=Path, help="what `fit ... --out` wrote")
    predicting.add_argument("--flops", type=float, required=True, help="the budget, C = 6ND")
    predicting.add_argument(
        "--unique-tokens", type=float, help="tokens that are not repeats, for the form repeated"
    )
    predicting.add_argument("--config", help="base of a config of the best size for this budget")
    predicting.add_argument("--out", type=Path, help="file for that config")
    predicting.add_argument("--json", action="store_true", help="print one JSON object")
    plotting = commands.add_parser("plot", description="The pictures of the papers, and a page.")
    plotting.add_argument("runs", help="a CSV with the columns N, D, loss, or a directory of runs")
    plotting.add_argument("--form", default="chinchilla", choices=FORMS, help="default chinchilla")
    plotting.add_argument("--out", type=Path, required=True, help="directory of index.html")
    counting = commands.add_parser("count", description="Parameters and FLOPs by each convention.")
    counting.add_argument("--config", required=True, help="config file: a path, or a name")
    counting.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def scaling(arguments: Sequence[str]) -> int:
    """Run one command; the exit status."""
    options = parser().parse_args(arguments)
    if options.command is None:
        raise Mistake("say what to do: fit, predict, plot or count (see --help).")
    if options.command in ("fit", "predict") and options.out is not None:
        parent = options.out.absolute().parent
        if not parent.is_dir():  # said now, and not when the fit is made
            raise Mistake(f"--out is {options.out} and there is no directory {parent}: make it.")
    {"fit": fit, "predict": predict, "plot": plot, "count": count}[options.command](options)
    return 0


def fit(options: argparse.Namespace) -> None:
    """Fit and print."""
    if options.resamples != 0 and options.resamples < FEWEST:
        raise Mistake(
            f"--resamples is {options.resamples}: make it 0 for none, or {FEWEST} or more, of which "
            "the middle 95 % can be told."
        )
    if options.seed < 0:
        raise Mistake(f"--seed is {options.seed}: make it 0 or more.")
    if options.form not in FORMS:
        if options.out is not None:
            raise Mistake(
                f"--out is for laws of the loss ({', '.join(FORMS)}), not {options.form}."
            )
        allocate(options)
        return
    points = sources.read(options.runs)
    warn(points)
    fitted = fits.fit(points, FORMS[options.form], options.resamples, options.seed)
    held = hold_back(fitted)
    if options.out is not None:
        fits.save(fitted, options.out)
    show(options.json, summary.fit_json(fitted, held), summary.fit_lines(fitted, held))


def allocate(options: argparse.Namespace) -> None:
    """Approaches 1 and 2, and the laws of the learning rate and the batch."""
    form = options.form
    if form == "envelope":
        curves = sources.read_curves(options.runs)
        first, number = envelope(curves), sum(len(curve.loss_n) for curve in curves)
        made = summary.allocation_json(form, first, number)
        show(options.json, made, summary.allocation_lines(first, options.runs, number))
        return
    points = sources.read(options.runs)
    warn(points)
    if form == "isoflop":
        second = isoflop(points)
        made = summary.allocation_json(form, second, len(points))
        show(options.json, made, summary.allocation_lines(second, points.source, len(points)))
        return
    tuned = tuning(points, TUNED[form])
    made = summary.tuning_json(form, tuned, len(points))
    show(options.json, made, summary.tuning_lines(tuned, points.source, len(points)))


def predict(options: argparse.Namespace) -> None:
    """Print what a fit says of a budget; write a config of it."""
    from pretrain.scaling import predict as predictions

    fitted = fits.load(options.fit)
    needs = "U" in fitted.form.columns
    if needs != (options.unique_tokens is not None):
        raise Mistake(
            f"{options.fit} is a fit of the form {fitted.form.name}: "
            + ("say --unique-tokens." if needs else "--unique-tokens is for the form repeated.")
        )
    if (options.config is None) != (options.out is None):
        raise Mistake("--config and --out go together: a base config, and the file to write.")
    known = {"U": options.unique_tokens} if needs else {}
    found = predictions.predict(fitted, options.flops, **known)
    made: dict[str, Any] = {"form": fitted.form.name, **dataclasses.asdict(found)}
    lines = list(summary.prediction_lines(found))
    if options.config is not None:
        from pretrain.run import load
        from pretrain.scaling import larger

        base = load(options.config)
        run = larger.enlarged(base, found.N, found.flops)
        size = larger.counted(run)
        loss, _, (low, high) = predictions.at(fitted, *size, **known)
        source = f"{options.fit.name}, {fitted.form.name} of {len(fitted.points)} points, 95 %"
        forecast = Forecast(loss=loss, low=low, high=high, source=source)
        larger.write(options.out, options.config, base, run, forecast)
        made["config"] = {"N": size[0], "D": size[1], "forecast": config.to_json(forecast)}
        lines.append(
            f"config      {options.out}: {size[0]:.4g} parameters, {size[1]:.4g} tokens, loss {loss:.4f}"
        )
    show(options.json, made, lines)


def plot(options: argparse.Namespace) -> None:
    """Draw every picture that the runs allow, and write the page."""
    from pretrain.scaling import plot as plots
    from pretrain.scaling import report

    plots.library()
    points = sources.read(options.runs)
    warn(points)
    fitted = fits.fit(points, FORMS[options.form])
    held = hold_back(fitted)
    sections = [(f"Fit: {options.form}", "\n".join(summary.fit_lines(fitted, held)))]
    curves = sources.read_curves(options.runs)
    found: dict[str, Any] = {}
    for name, build in (
        ("isoflop", lambda: isoflop(points)),
        ("envelope", lambda: envelope(curves)),
    ):
        try:
            found[name] = build()
            lines = summary.allocation_lines(found[name], points.source, len(points))
            sections.append((f"Approach: {name}", "\n".join(lines)))
        except Mistake as mistake:
            sections.append((f"Approach: {name}", f"not possible: {mistake}"))
    smaller = held.smaller if not isinstance(held, str) else None
    drawn = plots.pictures(fitted, smaller, found.get("isoflop"), found.get("envelope"), curves)
    for file in report.write(options.out, f"Scaling of {options.runs}", sections, drawn):
        print(file)


def count(options: argparse.Namespace) -> None:
    """Print what a config amounts to by each convention."""
    from pretrain.run import load
    from pretrain.scaling import counting

    found = dataclasses.asdict(counting.counts(load(options.config)))
    lines = (f"{name:<34}{value:>12.5g}" for name, value in found.items())
    show(options.json, found, lines)


def warn(points: Points) -> None:
    """Say on standard error what was dropped; standard output has it too."""
    if points.dropped:
        which = "; ".join(f"{d.name}: {d.why}" for d in points.dropped[:3])
        more = f"; and {len(points.dropped) - 3} more" if len(points.dropped) > 3 else ""
        print(f"pretrain.scaling: {len(points.dropped)} dropped ({which}{more}).", file=sys.stderr)


def show(as_json: bool, value: dict[str, Any], lines: Iterable[str]) -> None:
    """Print the object, or the lines."""
    print(json.dumps(summary.finite(value), indent=1) if as_json else "\n".join(lines))


if __name__ == "__main__":
    launch.compile_cache("~/.cache/pretrain/compile", lambda said: None)
    sys.exit(main())
