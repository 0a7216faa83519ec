"""Chinchilla's approach 1: for each number of FLOPs the run that is best there, among all training curves."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.config import Mistake
from pretrain.scaling.isoflop import Allocation
from pretrain.scaling.points import Curve
from pretrain.scaling.power import PowerLaw, power_law

FEWEST = 5  # losses that make a curve
BINS = 1500  # FLOPs at which the curves are compared, as in section 3.1


@dataclass(frozen=True)
class Envelope(Allocation):
    """Approach 1: where each curve is the lowest."""

    flops: np.ndarray
    loss: np.ndarray
    best: tuple[str, ...]  # the curve that is lowest at each


def envelope(curves: Sequence[Curve]) -> Envelope:
    """The lower envelope of the curves (Hoffmann et al., arXiv 2203.15556, section 3.1).

    Curves are smoothed over a twentieth of their tokens and interpolated in log FLOPs. A curve still
    under warm-up, or of a schedule far from its end, stands for less than its FLOPs could buy.
    Raises Mistake where one curve is the lowest everywhere.
    """
    curves = [curve for curve in curves if len(curve.loss_n) >= FEWEST]
    if len({curve.N for curve in curves}) < 2:
        raise Mistake(
            f"an envelope needs training curves of two sizes or more, of {FEWEST} losses each: name "
            "a directory of runs, or a CSV with a row for each N and D along the curves."
        )
    flops = [curve.flops_per_token * curve.tokens_n for curve in curves]
    low, high = min(f[0] for f in flops), max(f[-1] for f in flops)
    grid = np.geomspace(low, high, BINS)
    losses = np.stack(
        [
            np.interp(np.log(grid), np.log(f), smooth(curve), left=np.inf, right=np.inf)
            for f, curve in zip(flops, curves, strict=True)
        ]
    )
    # At the ends few curves compete: there the best is the only one.
    rivals = np.isfinite(losses).sum(axis=0) >= 2
    if not rivals.any():
        raise Mistake("no two curves pass the same number of FLOPs: train the sizes for longer.")
    grid, losses = grid[rivals], losses[:, rivals]
    best = losses.argmin(axis=0)
    N = np.array([curve.N for curve in curves])[best]
    if len(np.unique(N)) < 2:
        raise Mistake(
            f"the run {curves[best[0]].name} is the best at every number of FLOPs: add sizes."
        )
    D = grid / np.array([curve.flops_per_token for curve in curves])[best]
    return Envelope(
        N=without_intervals(N, grid),
        D=without_intervals(D, grid),
        dropped=(),
        flops=grid,
        loss=losses.min(axis=0),
        best=tuple(curves[i].name for i in best),
    )


def without_intervals(y: np.ndarray, flops: np.ndarray) -> PowerLaw:
    """The power law. Its points are bins of few curves, so Student's intervals would mean nothing."""
    return dataclasses.replace(power_law(y, C=flops), intervals={})


def smooth(curve: Curve) -> np.ndarray:
    """The running mean of the loss over a twentieth of the curve, narrower at its ends."""
    n = len(curve.loss_n)
    half = n // 40
    sums = np.concatenate([[0.0], np.cumsum(curve.loss_n)])
    at = np.arange(n)
    reach = np.minimum(half, np.minimum(at, n - 1 - at))
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
