"""What a fitted law says of a budget: the best N and D, the loss there, and how sure that is."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.config import Mistake
from pretrain.scaling import condition
from pretrain.scaling.fit import Fit
from pretrain.scaling.forms import Form
from pretrain.scaling.intervals import LEVEL

Interval = tuple[float, float]
LOWEST, HIGHEST = math.log(1e2), math.log(1e18)  # log N between which the best is looked for

SMALLER, LARGER = 1e-3, 1e6  # how far from the budgets fitted a prediction is made at all


@dataclass(frozen=True)
class Prediction:
    """The best spending of a budget C = 6ND. Intervals are of 95 %, each on its own."""

    flops: float
    N: float
    D: float
    loss: float
    N_interval: Interval
    D_interval: Interval
    loss_interval: Interval  # of the law's loss at this N and D
    band: Interval  # of a run's loss there: the law's doubt and the scatter of runs
    farther: float  # the budget over the largest one fitted


def optimum(form: Form, vectors_RP: np.ndarray, flops: float, **known: float) -> np.ndarray:
    """The N that is best at C = 6ND under each vector, [R]; NaN where the loss falls or rises throughout.

    Where d log L / d log N, along D = C / 6N, changes its sign. `known` are the form's other columns.
    """
    with jax.enable_x64(True):
        others = {name: jnp.asarray(math.log(x)) for name, x in known.items()}
        budget = jnp.asarray(math.log(flops / 6))
        return np.asarray(_optimum(form, jnp.asarray(vectors_RP), budget, others))


@functools.partial(jax.jit, static_argnums=0)
def _optimum(
    form: Form, vectors_RP: jax.Array, budget: jax.Array, others: Mapping[str, jax.Array]
) -> jax.Array:
    def slope(n: jax.Array, vector_P: jax.Array) -> jax.Array:
        def along(n: jax.Array) -> jax.Array:
            return form.log_loss(vector_P, {"N": n, "D": budget - n, **others})

        return jax.grad(along)(n)

    def best(vector_P: jax.Array) -> jax.Array:
        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            falls = slope(middle, vector_P) < 0
            return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

        ends = jnp.asarray(LOWEST), jnp.minimum(HIGHEST, budget)
        inside = (slope(ends[0], vector_P) < 0) & (slope(ends[1], vector_P) > 0)
        low, high = jax.lax.fori_loop(0, 100, halve, ends)
        return jnp.where(inside, jnp.exp((low + high) / 2), jnp.nan)

    return jax.vmap(best)(vectors_RP)


def predict(fitted: Fit, flops: float, **known: float) -> Prediction:
    """The best spending of a budget. Raises Mistake where the fit does not determine it."""
    if not flops > 0 or not math.isfinite(flops):
        raise Mistake(f"--flops is {flops:g}: give a budget above 0.")
    spent = 6 * fitted.points.N * fitted.points.D  # not C, which a source may count otherwise
    least, largest = float(spent.min()), float(spent.max())
    if not SMALLER * least <= flops <= LARGER * largest:
        raise Mistake(
            f"--flops is {flops:g}, and the budgets that were fitted are {least:.3g} to {largest:.3g}: "
            f"no law is good for less than {SMALLER:g} of them or more than {LARGER:g} times them, so "
            f"give {SMALLER * least:.3g} to {LARGER * largest:.3g}."
        )
    lost, why = condition.unidentified(fitted.points, fitted.form, fitted.slopes_nP)
    if lost:
        raise Mistake(f"this fit cannot say how to spend a budget: {why}.")
    N = float(optimum(fitted.form, fitted.vector_P[None], flops, **known)[0])
    if not math.isfinite(N):
        raise Mistake(
            f"under this fit no N is the best at {flops:.3g} FLOPs, the loss falls or rises with N "
            "throughout: fit points on both sides of the best N."
        )
    D = flops / (6 * N)
    N_R = optimum(fitted.form, fitted.resamples_RP, flops, **known)
    loss, law, band = at(fitted, N, D, **known)
    return Prediction(
        flops, N, D, loss,
        N_interval=middle(N_R, N), D_interval=middle(flops / 6 / N_R, D),
        loss_interval=law, band=band, farther=flops / largest,
    )  # fmt: skip


def at(fitted: Fit, N: float, D: float, **known: float) -> tuple[float, Interval, Interval]:
    """The law's loss at N and D, its interval, and the band of a run's loss.

    A run scatters about each resample's law as the points do about the fitted one. Residuals are
    widened by sqrt(n / (n - P)), as a fit lies nearer to its points than the truth does.
    """
    columns = {"N": N, "D": D, **known}
    loss = float(fitted.form.loss(fitted.vector_P, **columns))
    vectors_RP = fitted.resamples_RP if len(fitted.resamples_RP) else fitted.vector_P[None]
    law_R = losses(fitted.form, vectors_RP, columns)
    n, P = len(fitted.points), len(fitted.vector_P)
    scatter_n = fitted.residuals_n * math.sqrt(n / (n - P))
    drawn_KR = np.random.default_rng(0).choice(scatter_n, size=(20, len(law_R)))
    return loss, middle(law_R, loss), middle((law_R * np.exp(drawn_KR)).ravel(), loss)


def losses(form: Form, vectors_RP: np.ndarray, columns: Mapping[str, float]) -> np.ndarray:
    """The loss at one point under each vector, [R]."""
    with jax.enable_x64(True):
        logs = {name: jnp.asarray(math.log(x)) for name, x in columns.items()}
        return np.exp(
            np.asarray(jax.vmap(lambda v_P: form.log_loss(v_P, logs))(jnp.asarray(vectors_RP)))
        )


def middle(draws: np.ndarray, value: float) -> Interval:
    """The middle 95 % of the draws that are numbers, with the value in it; the value alone without any."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return value, value
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), value), max(float(high), value)
