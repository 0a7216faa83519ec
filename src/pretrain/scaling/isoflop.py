"""Chinchilla's approach 2: a parabola through the losses of every budget, power laws through their minima.

On grids wide enough for the loss to leave a parabola, and with alpha unlike beta, the minima are off
by a factor (Hoffmann et al., arXiv 2203.15556, section 3.2, does not correct for it, nor does this).
"""

from dataclasses import dataclass

import numpy as np

from pretrain.config import Mistake
from pretrain.scaling.points import Dropped, Points, budgets
from pretrain.scaling.power import PowerLaw, Vertex, power_law, vertex


@dataclass(frozen=True)
class Valley:
    """The sizes of one budget, and the best of them."""

    flops: float
    rows: np.ndarray  # of the points
    N: float  # at the parabola's minimum
    D: float  # tokens that the budget leaves that N
    loss: float
    parabola: Vertex  # the loss by log N


@dataclass(frozen=True)
class Allocation:
    """How parameters and tokens should grow with the budget: N = k C^a, D = k' C^b."""

    N: PowerLaw
    D: PowerLaw
    dropped: tuple[Dropped, ...]

    @property
    def a(self) -> float:
        """Exponent of parameters."""
        return self.N.exponents["C"]

    @property
    def b(self) -> float:
        """Exponent of tokens."""
        return self.D.exponents["C"]


@dataclass(frozen=True)
class IsoFlop(Allocation):
    """Approach 2."""

    profiles: tuple[Valley, ...]


def isoflop(points: Points) -> IsoFlop:
    """Approach 2 on these points. Raises Mistake with fewer than two budgets that have a minimum."""
    profiles, dropped = [], []
    for rows in budgets(points):
        C, N, D = (values[rows] for values in (points.C, points.N, points.D))
        flops = float(np.exp(np.log(C).mean()))
        found = vertex(N, points.loss[rows])
        if isinstance(found, str):
            dropped.append(Dropped(f"the budget of {flops:.3g} FLOPs ({len(rows)} points)", found))
            continue
        order = np.argsort(N)
        tokens = np.exp(np.interp(np.log(found.x), np.log(N[order]), np.log(D[order])))
        profiles.append(Valley(flops, rows, found.x, float(tokens), found.y, found))
    if len(profiles) < 2:
        gone = "; ".join(f"{d.name}: {d.why}" for d in dropped) or "there is one budget"
        raise Mistake(
            f"{points.source} has {len(profiles)} budgets with a minimum and a power law needs two: "
            f"{gone}."
        )
    C = np.array([p.flops for p in profiles])
    return IsoFlop(
        N=power_law(np.array([p.N for p in profiles]), C=C),
        D=power_law(np.array([p.D for p in profiles]), C=C),
        dropped=(*points.dropped, *dropped),
        profiles=tuple(profiles),
    )
