"""Where points and curves are read from: a CSV file, or the run directories below a directory."""

from pathlib import Path

import numpy as np

from pretrain.scaling.points import Curve, Points, read_csv


def read(source: str) -> Points:
    """The points of a CSV with the columns N, D, loss, or of run directories."""
    path = Path(source)
    if path.is_dir():
        from pretrain.scaling import runs  # models and optimizers, which a CSV can do without

        return runs.read_runs(path)
    return read_csv(path)


def read_curves(source: str) -> list[Curve]:
    """Curves of run directories; of a CSV, all rows of one N are a curve."""
    path = Path(source)
    if path.is_dir():
        from pretrain.scaling import runs

        return runs.read_curves(path)
    points = read_csv(path)
    curves = []
    for N in np.unique(points.N):
        rows = np.flatnonzero(points.N == N)
        rows = rows[np.argsort(points.D[rows])]
        cost = float(np.median(points.C[rows] / points.D[rows]))
        curves.append(Curve(f"N = {N:.4g}", float(N), points.D[rows], points.loss[rows], cost))
    return curves
