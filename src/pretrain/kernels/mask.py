"""Masks: which keys a query may see, in terms of global positions, and what is added to their logits."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pretrain.config import Mistake, Node

# Finite, so that a row whose keys are all hidden in one block of keys has no NaN.
HIDDEN = -1e30


class Mask(Node):
    """Which keys a query may see; documents come on top as segments.

    Positions are ints or integer arrays. Kernels take only the exact classes in their `masks`, so one
    that does not know a mask refuses it.
    """

    # One per query head, or none: a logit gains slope * (j - i).
    slopes: ClassVar[tuple[float, ...]] = ()

    def allowed(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """True where query i sees key j; i and j broadcast. Every query sees itself."""
        raise NotImplementedError

    def reaches(self, first_i: Any, last_i: Any, first_j: Any, last_j: Any) -> Any:
        """Whether any of the queries first_i ... last_i sees any of the keys first_j ... last_j."""
        raise NotImplementedError

    def span(self, length: int) -> int:
        """How many of the newest `length` positions, at most, a query sees."""
        return length

    def check(self) -> None:
        """Raise Mistake where the fields make no mask."""


class Causal(Mask):
    """A query sees itself and the positions before it, all of them or the nearest."""

    window: int | None = None  # positions a query sees, itself included; None sees all before it

    def allowed(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """True where j <= i and i - j < window."""
        seen = j <= i
        return seen if self.window is None else seen & (i - j < self.window)

    def reaches(self, first_i: Any, last_i: Any, first_j: Any, last_j: Any) -> Any:
        """Whether 0 <= i - j < window for any pair of the two runs."""
        seen = first_j <= last_i
        return seen if self.window is None else seen & (first_i - last_j < self.window)

    def span(self, length: int) -> int:
        """How many of the newest `length` positions, at most, a query sees."""
        return length if self.window is None else min(length, self.window)

    def check(self) -> None:
        """Raise Mistake for a window in which a query does not see itself."""
        if self.window is not None and self.window < 1:
            raise Mistake(
                f"mask.window is {self.window}: a query sees at least itself, so 1 or more."
            )


class Alibi(Causal):
    """Causal, with logits that fall linearly with distance (Press et al., arXiv 2108.12409)."""

    slopes: tuple[float, ...]  # type: ignore[misc]  # a field here, one per query head; none above

    @classmethod
    def of(cls, heads: int, most: int = 8) -> "Alibi":
        """With the slopes of the paper: 2^(-most/N), 2^(-2 most/N) ... 2^-most for N heads, a power of two.

        For another N, those of the power below it, and then, from the first, every second one of those
        of the power above it, as the paper's code does.
        """
        below = 1 << (heads.bit_length() - 1)
        own = [2 ** (-most * n / below) for n in range(1, below + 1)]
        between = [2 ** (-most * n / below / 2) for n in range(1, 2 * (heads - below), 2)]
        return cls(slopes=(*own, *between))


def hidden(
    mask: Mask,
    i: jax.Array,
    j: jax.Array,
    own: jax.Array | None = None,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Additive fp32 bias of queries i and keys j, of segments `own` and `seen`; all broadcast."""
    allowed = mask.allowed(i, j)
    if own is not None:
        allowed = allowed & (own == seen)
    return jnp.where(allowed, jnp.float32(0), jnp.float32(HIDDEN))


def slant(slopes_KG: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """slope * (j - i) in fp32: the dims [K, G] before those that i and j broadcast to."""
    distance = (j - i).astype(jnp.float32)
    slopes = jnp.expand_dims(slopes_KG, tuple(range(2, 2 + distance.ndim)))
    return slopes * distance[None, None]
