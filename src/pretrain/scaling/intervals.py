"""Intervals of fitted coefficients: from a bootstrap over points, and from the objective's bend."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LEVEL = 0.95


def resampled(points: int, resamples: int, seed: int) -> np.ndarray:
    """How often each point is drawn in each resample, [R, n]: as many as there are, put back."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(points, np.full(points, 1 / points), size=resamples).astype(np.float64)


def each(draws_RP: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Percentile interval of every column on its own, [P, 2] (Efron 1981)."""
    tail = (1 - level) / 2
    return np.quantile(draws_RP, [tail, 1 - tail], axis=0).T


def together(draws_RP: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The box that holds all columns of a draw at once, in a share `level` of the draws, [P, 2].

    Between the k-th smallest and the k-th largest draw of every column, by the largest k that
    does (Besag et al. 1995, section 6.3). It depends on ranks alone, so a box of logarithms is the
    box of the values.
    """
    R = len(draws_RP)
    sorted_RP = np.sort(draws_RP, axis=0)
    ranks_RP = np.argsort(np.argsort(draws_RP, axis=0), axis=0) + 1
    outermost_R = np.maximum(ranks_RP.max(axis=1), R + 1 - ranks_RP.min(axis=1))
    k = int(np.sort(outermost_R)[math.ceil(level * R) - 1])
    return np.stack([sorted_RP[R - k], sorted_RP[k - 1]], axis=1)


def covariance(slopes_nP: np.ndarray, residuals_n: np.ndarray, delta: float) -> np.ndarray:
    """Of a Huber estimate, [P, P]: E[psi^2] / E[psi']^2 (J^T J)^-1 (Huber 1981, section 7.6).

    The points are taken to scatter alike. E[psi'], the share of residuals within delta, is that of
    their density smoothed by Silverman's bandwidth: few residuals are so small.
    """
    n, P = slopes_nP.shape
    psi_n = np.clip(residuals_n, -delta, delta)
    scale = min(residuals_n.std(), 1.4826 * np.median(np.abs(residuals_n)))
    width = max(1.06 * scale * n**-0.2, 1e-300)
    with jax.enable_x64(True):
        below = jax.scipy.stats.norm.cdf(jnp.asarray((delta - residuals_n) / width))
        above = jax.scipy.stats.norm.cdf(jnp.asarray((-delta - residuals_n) / width))
        share = max(float(jnp.mean(below - above)), 1e-300)
    bend_PP = slopes_nP.T @ slopes_nP
    return psi_n @ psi_n / max(n - P, 1) / share**2 * np.linalg.pinv(bend_PP, hermitian=True)


def analytic(vector_P: np.ndarray, covariance_PP: np.ndarray, freedom: int) -> np.ndarray:
    """Student's interval of every coefficient on its own, [P, 2]."""
    errors_P = np.sqrt(np.maximum(np.diag(covariance_PP), 0))
    reach = student(max(freedom, 1))
    return np.stack([vector_P - reach * errors_P, vector_P + reach * errors_P], axis=1)


@functools.cache
def student(freedom: int, level: float = LEVEL) -> float:
    """Student's t for a two-sided interval, by bisection of its distribution."""

    def outside(t: float) -> float:
        with jax.enable_x64(True):
            x = jnp.asarray(freedom / (freedom + t * t))
            return float(jax.scipy.special.betainc(freedom / 2, 0.5, x))

    return bisect(lambda t: outside(t) - (1 - level), 0.0, 1000.0)


def bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
