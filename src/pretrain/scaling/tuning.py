"""Power laws of the best learning rate and the best batch in N and D, from grids of runs.

At every N and D, a parabola through the losses by log of the rate (or batch) has the best one at its
minimum; the minima follow y = c N^p D^q (Bi et al., arXiv 2401.02954, section 3.1, with C; Li et al.,
arXiv 2503.04715, with N and D).
"""

from dataclasses import dataclass

import numpy as np

from pretrain.config import Mistake
from pretrain.scaling.points import Dropped, Points
from pretrain.scaling.power import PowerLaw, power_law, vertex


@dataclass(frozen=True)
class Optimum:
    """The best value at one N and D."""

    N: float
    D: float
    best: float
    loss: float


@dataclass(frozen=True)
class Tuning:
    """The law of one knob, in C where N and D alone are not told apart."""

    column: str
    law: PowerLaw
    optima: tuple[Optimum, ...]
    dropped: tuple[Dropped, ...]


def tuning(points: Points, column: str) -> Tuning:
    """The law of the best `column`, "lr" or "batch". Raises Mistake with too few optima."""
    values = points.column(column)
    if not (values > 0).all():
        raise Mistake(f"{points.source} has a {column} of {values.min():g}: it must be above 0.")
    optima, dropped = [], []
    for N, D in sorted({*zip(points.N.tolist(), points.D.tolist(), strict=True)}):
        rows = (points.N == N) & (points.D == D)
        # Of the other knob's values only the best counts at each value of this one.
        tried = np.unique(values[rows])
        least = np.array([points.loss[rows & (values == value)].min() for value in tried])
        found = vertex(tried, least)
        if isinstance(found, str):
            dropped.append(Dropped(f"N = {N:.4g}, D = {D:.4g} ({rows.sum()} points)", found))
        else:
            optima.append(Optimum(N, D, found.x, found.y))
    if len(optima) < 2:
        gone = "; ".join(f"{d.name}: {d.why}" for d in dropped[:2])
        raise Mistake(
            f"{points.source} has {len(optima)} pairs of N and D with a best {column} within the "
            f"grid, and a law needs two or more ({gone})."
        )
    N, D, best = (np.array([getattr(o, name) for o in optima]) for name in ("N", "D", "best"))
    try:
        law = power_law(best, N=N, D=D)
    except Mistake:  # D follows N, as along a frontier: one exponent, in the budget
        law = power_law(best, C=6 * N * D)
    return Tuning(column, law, tuple(optima), (*points.dropped, *dropped))
