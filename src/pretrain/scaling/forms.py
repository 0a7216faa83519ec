"""The laws: the loss of a run as a function of its parameters N and its tokens D.

Each is written as its paper writes it, as the logarithm of the loss, in log N and log D. What must
be positive is fitted as its logarithm: `vector` and `values` go from one to the other.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

Columns = Mapping[str, jax.Array]
"""Natural logarithms of what a law takes, by column name: N, D, and U where it wants it."""


class Form:
    """Base of the laws."""

    name: ClassVar[str]  # on the command line
    source: ClassVar[str]  # where it was published
    equation: ClassVar[str]
    coefficients: ClassVar[tuple[str, ...]]  # in the order of the fitted vector
    positive: ClassVar[tuple[str, ...]]  # those fitted as logarithms
    columns: ClassVar[tuple[str, ...]] = ("N", "D")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def log_loss(self, vector_P: jax.Array, x: Columns) -> jax.Array:
        """The logarithm of the loss at each point, [n]."""
        raise NotImplementedError

    def grid(self) -> dict[str, Sequence[float]]:
        """Starting values of each entry of the vector; the starts are all combinations."""
        raise NotImplementedError

    def starts(self) -> np.ndarray:
        """All combinations of the grid, [S, P]."""
        grid = self.grid()
        return np.array(list(itertools.product(*(grid[name] for name in self.coefficients))))

    def values(self, vector_P: np.ndarray) -> dict[str, float]:
        """Coefficients by name, as the equation has them; infinite where a lost term ran away."""
        with np.errstate(over="ignore"):
            linear_P = np.exp(vector_P)
        pairs = zip(self.coefficients, vector_P, linear_P, strict=True)
        return {name: float(e if name in self.positive else x) for name, x, e in pairs}

    def vector(self, values: Mapping[str, float]) -> np.ndarray:
        """The fitted vector of coefficients by name."""
        return np.array(
            [math.log(values[n]) if n in self.positive else values[n] for n in self.coefficients]
        )

    def loss(self, vector_P: np.ndarray, **columns: float | np.ndarray) -> np.ndarray:
        """The law's loss for columns in their own units: `loss(vector, N=7e10, D=1.4e12)`."""
        with jax.enable_x64(True):
            logs = {k: jnp.log(jnp.asarray(v, jnp.float64)) for k, v in columns.items()}
            return np.exp(np.asarray(self.log_loss(jnp.asarray(vector_P, jnp.float64), logs)))


def log_sum(*terms: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b) + ...), with no overflow."""
    return jax.nn.logsumexp(jnp.stack(jnp.broadcast_arrays(*terms)), axis=0)


class Chinchilla(Form):
    """Two power laws above the entropy of the text (Hoffmann et al., section 3.3 and appendix D.3)."""

    name = "chinchilla"
    source = "Hoffmann et al., arXiv 2203.15556, equation 2"
    equation = "L = E + A / N^alpha + B / D^beta"
    coefficients = ("E", "A", "B", "alpha", "beta")
    positive = ("E", "A", "B")

    def log_loss(self, vector_P: jax.Array, x: Columns) -> jax.Array:
        """LSE(a - alpha log N, b - beta log D, e): the paper's equation 3."""
        e, a, b, alpha, beta = vector_P
        return log_sum(a - alpha * x["N"], b - beta * x["D"], e)

    def grid(self) -> dict[str, Sequence[float]]:
        """The paper's 4,500 starts (appendix D.3)."""
        powers, scales = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
        entropies = (-1.0, -0.5, 0.0, 0.5, 1.0)
        return {"E": entropies, "A": scales, "B": scales, "alpha": powers, "beta": powers}


class Kaplan(Form):
    """No entropy of the text: the loss would go to zero (Kaplan et al., equation 1.5).

    Their N is without embeddings.
    """

    name = "kaplan"
    source = "Kaplan et al., arXiv 2001.08361, equation 1.5"
    equation = "L = ((Nc / N)^(alphaN / alphaD) + Dc / D)^alphaD"
    coefficients = ("Nc", "Dc", "alphaN", "alphaD")
    positive = ("Nc", "Dc", "alphaN", "alphaD")

    def log_loss(self, vector_P: jax.Array, x: Columns) -> jax.Array:
        """alphaD LSE((alphaN / alphaD) log(Nc / N), log(Dc / D))."""
        nc, dc = vector_P[:2]
        alpha_n, alpha_d = jnp.exp(vector_P[2:])
        return alpha_d * log_sum(alpha_n / alpha_d * (nc - x["N"]), dc - x["D"])

    def grid(self) -> dict[str, Sequence[float]]:
        """Around what the paper found, a factor of 100 and more to each side."""
        scales = tuple(np.linspace(10.0, 45.0, 8))
        powers = tuple(np.log((0.03, 0.1, 0.3, 1.0)))
        return {"Nc": scales, "Dc": scales, "alphaN": powers, "alphaD": powers}


class OverTraining(Form):
    """Reducible loss at any ratio M = D/N falls with C = 6ND by one exponent (Gadre et al.).

    It is Chinchilla's law with alpha = beta = 2 eta.
    """

    name = "overtraining"
    source = "Gadre et al., arXiv 2403.08540, equation 4"
    equation = "L = E + (a M^eta + b M^-eta) C^-eta, M = D / N, C = 6 N D"
    coefficients = ("E", "a", "b", "eta")
    positive = ("E", "a", "b")

    def log_loss(self, vector_P: jax.Array, x: Columns) -> jax.Array:
        """LSE(e, log a + eta (m - c), log b - eta (m + c)), m = log M, c = log C."""
        e, a, b, eta = vector_P
        m, c = x["D"] - x["N"], math.log(6) + x["N"] + x["D"]
        return log_sum(e, a + eta * (m - c), b - eta * (m + c))

    def grid(self) -> dict[str, Sequence[float]]:
        """As Chinchilla's, with half the exponent."""
        scales = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
        entropies = (-1.0, -0.5, 0.0, 0.5, 1.0)
        return {"E": entropies, "a": scales, "b": scales, "eta": (0.0, 0.25, 0.5, 0.75, 1.0)}


class DataConstrained(Form):
    """Repeated tokens, and parameters beyond what unique tokens feed, are worth less and less.

    U is the column of unique tokens. D' = U + U R (1 - exp(-(D/U - 1)/R)), R being RD, and N'
    likewise from U_N, the compute-optimal N of Chinchilla's law for U tokens, by RN.
    """

    name = "repeated"
    source = "Muennighoff et al., arXiv 2305.16264, equations 5 and 6"
    equation = "L = E + A / N'^alpha + B / D'^beta"
    coefficients = ("E", "A", "B", "alpha", "beta", "RD", "RN")
    positive = ("E", "A", "B", "alpha", "beta", "RD", "RN")
    columns = ("N", "D", "U")

    def log_loss(self, vector_P: jax.Array, x: Columns) -> jax.Array:
        """Chinchilla's LSE in log N' and log D'."""
        e, a, b = vector_P[:3]
        alpha, beta, tokens, parameters = jnp.exp(vector_P[3:])
        # Where C = 6ND is spent best, alpha A / N^alpha = beta B / D^beta.
        fed = (jnp.log(alpha / beta) + a - b + beta * x["U"]) / alpha
        n = effective(x["N"], fed, parameters)
        d = effective(x["D"], x["U"], tokens)
        return log_sum(a - alpha * n, b - beta * d, e)

    def grid(self) -> dict[str, Sequence[float]]:
        """Coarser than Chinchilla's in each of its coefficients."""
        scales = (0.0, 5.0, 10.0, 15.0)
        powers = tuple(np.log((0.2, 0.4, 0.8)))
        return {
            "E": (-0.5, 0.5), "A": scales, "B": scales, "alpha": powers, "beta": powers,
            "RD": tuple(np.log((1.0, 10.0, 50.0))), "RN": tuple(np.log((1.0, 10.0))),
        }  # fmt: skip


def effective(total: jax.Array, unique: jax.Array, worth: jax.Array) -> jax.Array:
    """log of u + u R (1 - exp(-(t/u - 1)/R)) where t exceeds u, else log t; all but R as logs."""
    repeats = jnp.expm1(jnp.clip(total - unique, 0, 50))
    return jnp.minimum(total, unique) + jnp.log1p(-worth * jnp.expm1(-repeats / worth))


FORMS: Mapping[str, Form] = {
    form.name: form for form in (Chinchilla(), Kaplan(), OverTraining(), DataConstrained())
}

# Hoffmann et al. as their TeX source has them (Besiroglu et al., arXiv 2404.10102), and as printed.
HOFFMANN = {
    "E": math.exp(0.5267228), "A": math.exp(6.0073404), "B": math.exp(6.0179186),
    "alpha": 0.33917084, "beta": 0.2849083,
}  # fmt: skip
HOFFMANN_ROUNDED = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
