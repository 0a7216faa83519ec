"""Builders of members: IsoFLOP profiles, token ladders from one trunk, grids, widths and depths.

Each takes whole runs and changes what makes the ladder: a sweep file stays a list of runs that one can
read, and whatever else should vary with the size is said where the runs are made.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretrain.config import Mistake, leaves, nearest
from pretrain.models.model import Architecture
from pretrain.parametrisation import at_width
from pretrain.run import Run
from pretrain.schedules import WarmupStableDecay
from pretrain.sweeps.cost import flops_per_token, parameters
from pretrain.sweeps.member import Member


def isoflop(
    runs: Mapping[str, Run],
    budgets: Iterable[float],
    tokens_per_parameter: tuple[float, float] = (0.0, math.inf),
) -> list[Member]:
    """Every budget spent on every size (Hoffmann et al., arXiv 2203.15556, section 3.2).

    `runs` are the sizes by name; their steps are replaced, so that tokens times counted FLOPs a token
    is the budget, to half a step. Cells outside the range of tokens per parameter are no members.
    Raises Mistake where no size is within it, or a budget pays for no step.
    """
    low, high = tokens_per_parameter
    made = []
    for budget in budgets:
        cells = {name: for_budget(run, budget) for name, run in runs.items()}
        within = [
            Member(name=f"{budget:.3g}-{name}".replace("+", ""), run=run)
            for name, run in cells.items()
            if low <= run.steps * tokens_a_step(run) / parameters(run.model).total <= high
        ]
        if not within:
            raise Mistake(
                f"a budget of {budget:.3g} FLOPs gives no size {low:g} to {high:g} tokens per "
                "parameter: add sizes, or widen the range."
            )
        made += within
    return made


def for_budget(run: Run, flops: float) -> Run:
    """The run with as many steps as so many FLOPs pay for."""
    a_step = flops_per_token(run) * tokens_a_step(run)
    return replace(run, steps=whole_steps(flops / a_step, f"{flops:.3g} FLOPs"))


def for_tokens(run: Run, tokens: float) -> Run:
    """The run with as many steps as it takes to read so many tokens."""
    return replace(run, steps=whole_steps(tokens / tokens_a_step(run), f"{tokens:.3g} tokens"))


def tokens_a_step(run: Run) -> int:
    """Tokens of every step. Raises Mistake where the steps of a run are not all alike."""
    if run.ramp.stages:
        raise Mistake("a ladder's runs have no ramp: leave ramp.stages empty.")
    return run.batch * run.seq_len


def whole_steps(steps: float, of: str) -> int:
    """The nearest whole number. Raises Mistake below half a step."""
    if steps < 0.5:
        raise Mistake(f"{of} are {steps:.2g} steps: take more, or a smaller batch.")
    return round(steps)


def token_ladder(
    name: str, run: Run, tokens: Sequence[float], *, decay: float = 0.2, every: int
) -> list[Member]:
    """One model trained on several numbers of tokens for little more than the largest costs.

    A trunk at a constant rate, then a short decay for each number of tokens, from a checkpoint of the
    trunk (Haegele et al., arXiv 2405.18392; MiniCPM, arXiv 2404.06395). Each rung is the very run that
    a warm-up-stable-decay schedule of its length would make, because the order of the data is a
    function of the step. `decay` is the share of a rung's steps that its rate falls over, to within
    `every`, the steps between the trunk's checkpoints.
    """
    rungs = [for_tokens(run, number) for number in sorted(tokens)]
    forks = [round(rung.steps * (1 - decay) / every) * every for rung in rungs]
    for rung, fork in zip(rungs, forks, strict=True):
        if not max(run.optim.schedule.warmup, 1) <= fork < rung.steps:
            raise Mistake(
                f"the rung of {rung.steps} steps would leave the trunk at step {fork}: choose another "
                "number of steps between the trunk's checkpoints, a shorter warm-up, or more tokens."
            )
    warmup = run.optim.schedule.warmup
    trunk = replace(
        run,
        steps=forks[-1],
        # Not `Constant`: the same program as a rung's, but for its numbers, gives the same bits.
        optim=replace(run.optim, schedule=WarmupStableDecay(warmup=warmup, decay=0)),
        checkpoint=replace(run.checkpoint, every=every, keep_every=every),
    )
    members = [Member(name=f"{name}-trunk", run=trunk)]
    for rung, fork in zip(rungs, forks, strict=True):
        schedule = WarmupStableDecay(warmup=warmup, decay=rung.steps - fork)
        decaying = replace(rung, optim=replace(run.optim, schedule=schedule))
        label = f"{rung.steps * tokens_a_step(run):.3g}".replace("+", "")
        members.append(Member(name=f"{name}-{label}", run=decaying, trunk=f"{name}-trunk", at=fork))
    return members


def grid(name: str, run: Run, values: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Every combination of values of fields by their dotted names: `{"optim.peak_lr": (1e-3, 3e-3)}`.

    Where `batch` varies, steps follow, so that all members read the tokens that `run` does.
    """
    tokens = run.steps * tokens_a_step(run)
    members = []
    for chosen in itertools.product(*values.values()):
        made: Run = run
        for path, value in zip(values, chosen, strict=True):
            made = with_field(made, path, value)
        if "batch" in values:
            made = for_tokens(made, tokens)
        labels = zip(values, chosen, strict=True)
        words = [f"{path.rpartition('.')[2]}{value:g}".replace("+", "") for path, value in labels]
        members.append(Member(name="-".join([name, *words]), run=made))
    return members


def with_field(run: Run, path: str, value: Any) -> Run:
    """A copy of a run in which one field, `optim.peak_lr`, has another value."""
    if path not in leaves(run):
        raise Mistake(f"a run has no field {path!r}{nearest(path, leaves(run))}.")
    nodes: list[Any] = [run]
    *inner, last = path.split(".")
    for name in inner:
        nodes.append(getattr(nodes[-1], name))
    for node, name in zip(reversed(nodes), [last, *reversed(inner)], strict=True):
        value = replace(node, **{name: value})
    return value


def widths(model: Architecture, d_models: Iterable[int]) -> Iterator[tuple[int, Architecture]]:
    """The model at other widths, each with its width; `at_width` says what grows."""
    for d_model in d_models:
        yield d_model, at_width(model, d_model)


def depths(model: Architecture, layers: Iterable[int]) -> Iterator[tuple[int, Architecture]]:
    """The model with other numbers of layers."""
    for number in layers:
        yield number, replace(model, layers=number)
