"""How the next token is chosen from logits: the likeliest, or a draw.

A choice is pure functions on the state of a batch of texts, traced into the step. R counts rows of the
cache, `rows` of them a prompt, and E stop tokens.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.config import Mistake, Node
from pretrain.kernels.mask import HIDDEN
from pretrain.models.cache import Cache


class State(Protocol):
    """What a choice knows of a batch of texts between two steps: a pytree."""

    newest_R: jax.Array  # ids to read next

    @property
    def over_B(self) -> jax.Array:
        """Whether the text of each prompt is complete."""
        ...

    def news(self) -> list[list[int]]:
        """The ids by which the last step made the text of each prompt longer."""
        ...


class Choice(Node):
    """Base of the choices."""

    @property
    def rows(self) -> int:
        """How many rows are written side by side for one prompt."""
        return 1

    def start(self, room_B: jax.Array, seed: jax.Array, tokens: int) -> Any:
        """The state of texts that get `room_B` tokens each, `tokens` at most; 1 or more."""
        raise NotImplementedError

    def choose(self, logits_RV: jax.Array, state: Any, stop_E: jax.Array) -> Any:
        """The state one token later; a text ends with any of the ids `stop_E`."""
        raise NotImplementedError

    def follow(self, cache: Cache, state: Any) -> Cache:
        """The cache whose rows are those that `state` goes on with."""
        return cache

    def check(self, path: str) -> None:
        """Raises Mistake where a field is out of range, as one of the node at `path`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Texts that are written one row each, and never taken back."""

    newest_R: jax.Array
    room_R: jax.Array  # tokens that a text may still get, 0 after a stop token
    wrote_R: jax.Array  # whether the newest id is part of its text
    written: jax.Array  # tokens chosen so far
    seed: jax.Array

    @property
    def over_B(self) -> jax.Array:
        """Whether the text of each prompt is complete."""
        return self.room_R == 0

    def news(self) -> list[list[int]]:
        """The newest id of each text that was not complete before."""
        ids, wrote = np.asarray(self.newest_R).tolist(), np.asarray(self.wrote_R)
        return [[i] if w else [] for i, w in zip(ids, wrote, strict=True)]

    def after(self, ids_R: jax.Array, stop_E: jax.Array) -> "Rows":
        """The state when these ids are chosen."""
        room_R = jnp.where(jnp.isin(ids_R, stop_E), 0, jnp.maximum(self.room_R - 1, 0))
        return Rows(ids_R, room_R, self.room_R > 0, self.written + 1, self.seed)


class Greedy(Choice):
    """The likeliest token."""

    def start(self, room_B: jax.Array, seed: jax.Array, tokens: int) -> Rows:
        """See `Choice`."""
        return Rows(jnp.zeros_like(room_B), room_B, room_B > 0, jnp.int32(0), seed)

    def choose(self, logits_RV: jax.Array, state: Rows, stop_E: jax.Array) -> Rows:
        """See `Choice`."""
        return state.after(jnp.argmax(logits_RV, axis=-1).astype(jnp.int32), stop_E)


class Draw(Choice):
    """A draw from softmax(logits / temperature) over the likeliest tokens, `top_k` before `top_p`.

    Row r draws its token n by a key of (seed, r, n): it writes the same among any number of rows.
    """

    temperature: float = 1.0  # logits are divided by it: the lower, the likelier the tokens
    top_k: int | None = None  # draw from so many of the likeliest tokens; None draws from all
    # draw from the fewest of the likeliest tokens that have this probability together; None from all
    top_p: float | None = None

    def check(self, path: str) -> None:
        """Raises Mistake where a field is out of range, as one of the node at `path`."""
        if not self.temperature > 0:
            raise Mistake(
                f"{path}temperature is {self.temperature}: make it more than 0, or choose Greedy()."
            )
        if self.top_k is not None and self.top_k < 1:
            raise Mistake(f"{path}top_k is {self.top_k}: make it 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise Mistake(f"{path}top_p is {self.top_p}: make it more than 0 and at most 1.")

    def start(self, room_B: jax.Array, seed: jax.Array, tokens: int) -> Rows:
        """See `Choice`."""
        return Rows(jnp.zeros_like(room_B), room_B, room_B > 0, jnp.int32(0), seed)

    def choose(self, logits_RV: jax.Array, state: Rows, stop_E: jax.Array) -> Rows:
        """See `Choice`."""

        def draw(row: jax.Array, logits_V: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(state.seed), row)
            return jax.random.categorical(jax.random.fold_in(key, state.written), logits_V)

        rows_R = jnp.arange(len(logits_RV))
        ids_R = jax.vmap(draw)(rows_R, self.heated(logits_RV))
        return state.after(ids_R.astype(jnp.int32), stop_E)

    def heated(self, logits_RV: jax.Array) -> jax.Array:
        """The logits that are drawn from, `HIDDEN` where a token cannot be drawn."""
        logits_RV = logits_RV / self.temperature
        if self.top_k is not None:
            logits_RV = likeliest(logits_RV, self.top_k)
        if self.top_p is not None:
            logits_RV = nucleus(logits_RV, self.top_p)
        return logits_RV


def likeliest(logits_RV: jax.Array, k: int) -> jax.Array:
    """The k largest logits of each row, and those equal to the least of them; `HIDDEN` elsewhere."""
    largest_RK, _ = jax.lax.top_k(logits_RV, min(k, logits_RV.shape[-1]))
    return jnp.where(logits_RV >= largest_RK[:, -1:], logits_RV, HIDDEN)


def nucleus(logits_RV: jax.Array, p: float) -> jax.Array:
    """The fewest largest logits with probability p together, and those equal to the least of them.

    `HIDDEN` elsewhere. Holtzman et al., arXiv 1904.09751, section 3.1.
    """
    rising_RV = jnp.sort(logits_RV, axis=-1)
    # Summed from the unlikely end, where small probabilities are not lost beside large ones.
    mass_RV = jnp.cumsum(jax.nn.softmax(rising_RV, axis=-1), axis=-1)
    needed_RV = (mass_RV > 1 - p).at[:, -1].set(True)
    least_R1 = jnp.min(jnp.where(needed_RV, rising_RV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_RV >= least_R1, logits_RV, HIDDEN)
