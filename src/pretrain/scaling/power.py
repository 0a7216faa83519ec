"""Power laws y = c x^p ..., by least squares of logarithms, with Student's intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pretrain.config import Mistake
from pretrain.scaling.intervals import student


@dataclass(frozen=True)
class PowerLaw:
    """y = scale * product of x_k ** exponents[k]."""

    scale: float
    exponents: dict[str, float]
    intervals: dict[
        str, tuple[float, float]
    ]  # 95 %, each on its own; empty without a point to spare
    objective: float  # sum of squares of log y's residuals
    residuals_n: np.ndarray  # of log y

    def __call__(self, **x: float) -> float:
        """y at these x."""
        powers = (math.log(x[name]) * p for name, p in self.exponents.items())
        return self.scale * math.exp(sum(powers))


def power_law(y: np.ndarray, **x: np.ndarray) -> PowerLaw:
    """The law through positive numbers. Raises Mistake where the x do not determine it."""
    design = np.stack([np.ones(len(y)), *(np.log(values) for values in x.values())], axis=1)
    n, P = design.shape
    names = ", ".join(x)
    if n < P or np.linalg.matrix_rank(design - [0, *design[:, 1:].mean(axis=0)], tol=1e-3) < P:
        raise Mistake(
            f"a power law in {names} has {P} coefficients and there are {n} optima that differ too "
            "little: add budgets, or sizes at other numbers of tokens."
        )
    solution, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    residuals = np.log(y) - design @ solution
    square = float(residuals @ residuals)
    boxes: dict[str, tuple[float, float]] = {}
    if n > P:
        errors = np.sqrt(square / (n - P) * np.diag(np.linalg.inv(design.T @ design)))
        reach = student(n - P) * errors
        low, high = solution - reach, solution + reach
        boxes = {name: (float(low[k]), float(high[k])) for k, name in enumerate(x, start=1)}
        boxes["scale"] = (math.exp(low[0]), math.exp(high[0]))
    exponents: Mapping[str, float] = dict(zip(x, map(float, solution[1:]), strict=True))
    return PowerLaw(math.exp(solution[0]), dict(exponents), boxes, square, residuals)


@dataclass(frozen=True)
class Vertex:
    """The lowest point of a parabola through values of log x."""

    x: float
    y: float
    shape: tuple[float, float, float]  # y = shape[0] u^2 + shape[1] u + shape[2], u = log x

    def at(self, x: np.ndarray) -> np.ndarray:
        """The parabola."""
        return np.polyval(self.shape, np.log(x))


def vertex(x: np.ndarray, y: np.ndarray) -> Vertex | str:
    """The minimum of the parabola through y by log x, or why there is none within the x tried."""
    if len(np.unique(x)) < 3:
        return f"a parabola needs three values, and there are {len(np.unique(x))}"
    u = np.log(x)
    centre = u.mean()
    a, b, c = np.polyfit(u - centre, y, 2)
    if a <= 0:
        return "the loss has no minimum: it curves downwards"
    lowest = centre - b / (2 * a)
    if not u.min() <= lowest <= u.max():
        return f"the minimum would be at {math.exp(lowest):.3g}, outside the values tried"
    shape = (float(a), float(b - 2 * a * centre), float(c - b * centre + a * centre**2))
    return Vertex(math.exp(lowest), float(c - b * b / (4 * a)), shape)
