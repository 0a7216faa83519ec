"""The largest budget as a fit to the smaller ones predicts it: what extrapolation is worth here."""

from dataclasses import dataclass

import numpy as np

from pretrain.config import Mistake
from pretrain.scaling import condition
from pretrain.scaling.fit import Fit, minimum

SHARE = 0.8  # of the largest C: what lies above belongs to its budget


@dataclass(frozen=True)
class HeldBack:
    """A fit without the largest budget. Errors are relative: 0.01 is one per cent of the loss."""

    flops: float  # of the largest budget
    points: int  # in it
    mean_error: float  # of absolute values
    max_error: float
    bias: float  # the mean; above 0 where the runs came out worse than predicted
    smaller: Fit  # to the other budgets, without resamples


def hold_back(fitted: Fit) -> HeldBack | str:
    """The form fitted without the largest budget, or why that cannot be done."""
    points, form = fitted.points, fitted.form
    least = SHARE * points.C.max()
    largest = least < points.C
    rest = points.where(~largest)
    try:
        condition.check_enough(rest, form)
    except Mistake as mistake:
        return f"without the largest budget too little is left: {mistake}"
    vector_P, objective = minimum(points, form, np.where(largest, 0.0, 1.0))
    smaller = Fit(form, rest, vector_P, objective, np.empty((0, len(vector_P))))
    columns = {name: points.column(name)[largest] for name in form.columns}
    error_n = points.loss[largest] / form.loss(vector_P, **columns) - 1
    return HeldBack(
        flops=float(np.median(points.C[largest])),
        points=int(largest.sum()),
        mean_error=float(np.abs(error_n).mean()),
        max_error=float(np.abs(error_n).max()),
        bias=float(error_n.mean()),
        smaller=smaller,
    )
