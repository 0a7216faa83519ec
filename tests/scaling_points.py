"""What the tests of scaling laws share: points drawn from known laws."""

import numpy as np

from pretrain.scaling.forms import HOFFMANN, Chinchilla, Form
from pretrain.scaling.points import Points

CHINCHILLA = Chinchilla()


def best_size(C: float, law: dict[str, float] = HOFFMANN) -> float:
    """The best N at C = 6ND: G (C/6)^a (Hoffmann et al., arXiv 2203.15556, equation 4)."""
    both = law["alpha"] + law["beta"]
    G = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / both)
    return G * (C / 6) ** (law["beta"] / both)


def profiles(budgets: int = 6, sizes: int = 5, wide: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """N and D of IsoFLOP profiles from 6e18 to 3e21 FLOPs, N within a factor `wide` of the best."""
    C = np.geomspace(6e18, 3e21, budgets)
    factors = np.geomspace(1 / wide, wide, sizes)
    N = np.array([best_size(c) * factor for c in C for factor in factors])
    return N, np.repeat(C, sizes) / (6 * N)


def drawn(
    form: Form,
    values: dict[str, float],
    columns: dict[str, np.ndarray],
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Points of a law whose loss scatters by a share `noise`."""
    loss = form.loss(form.vector(values), **columns)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    names = tuple(f"run {i}" for i in range(len(loss)))
    return Points("drawn", names, columns | {"loss": loss * scatter})


def chinchilla(noise: float = 0.0, seed: int = 0, **shape: float) -> Points:
    """Points of the published law on IsoFLOP profiles."""
    N, D = profiles(**shape)  # type: ignore[arg-type]
    return drawn(CHINCHILLA, HOFFMANN, {"N": N, "D": D}, noise, seed)
