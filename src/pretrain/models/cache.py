"""The cache of decoding: what each layer remembers of the tokens seen, and attention through it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.kernels.mask import HIDDEN, Mask, slant
from pretrain.sharding import spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a batch of rows has seen, row by row padded on the *left* to a common length.

    So the newest token of every row has the same slot, and a step is one program whatever the slot.
    A row's position is its slot less that of its first token.
    """

    layers: tuple[Any, ...]  # what the layers remember, one entry a layer of the stack's block
    length: jax.Array  # slots taken, padding included
    first_B: jax.Array  # slot of the first token of each row

    def slots(self, tokens: int) -> jax.Array:
        """Slots [T] of the next tokens."""
        return self.length + jnp.arange(tokens, dtype=jnp.int32)

    def positions(self, tokens: int) -> jax.Array:
        """Positions [B, T] of the next tokens; 0 for padding, which nothing ever sees."""
        return jnp.maximum(self.slots(tokens)[None] - self.first_B[:, None], 0)

    def after(self, layers: tuple[Any, ...], tokens: int) -> "Cache":
        """The cache with what layers remember after `tokens` more."""
        return replace(self, layers=layers, length=self.length + tokens)

    def taken(self, rows_R: jax.Array) -> "Cache":
        """The cache of these rows, in this order; a row may be there more than once.

        Whatever a layer remembers has the rows as its second dim, behind the stacked layers.
        """
        held = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (self.layers, self.first_B))

        def take(layers: tuple[Any, ...], first_B: jax.Array, rows_R: jax.Array) -> Any:
            return jax.tree.map(lambda x: x[:, rows_R], layers), first_B[rows_R]

        taken = jax.sharding.auto_axes(take, out_sharding=held)
        layers, first_R = taken(self.layers, self.first_B, rows_R)
        return replace(self, layers=layers, first_B=first_R)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Keys:
    """Keys and values of one attention layer; a window keeps only as many, in a ring of slots."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array

    @classmethod
    def empty(
        cls, layers: int, rows: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
    ) -> "Keys":
        """For `layers` layers, stacked, on the current mesh."""
        kv = "kv_heads" if kv_heads > 1 else "-"
        shape, layout = (layers, rows, slots, kv_heads, head_dim), spec(f"layers batch - {kv} -")
        # Two arrays and not one twice: each step donates both.
        return cls(*(jnp.zeros(shape, dtype, out_sharding=layout) for _ in "kv"))


@dataclass(frozen=True)
class Seen:
    """Keys and values that the newest tokens may see, where they stand, and whether they may."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    i_T: jax.Array  # slots of the newest tokens
    j_S: jax.Array  # slots of the keys
    allowed_BTS: jax.Array


class Recall:
    """Attention of the newest tokens through the caches of one block's layers, in the order of its calls.

    After the block, `layers` is what they remember then.
    """

    def __init__(self, layers: Sequence[Any], slots_T: jax.Array, first_B: jax.Array):
        self._before: Iterator[Any] = iter(layers)
        self._slots_T, self._first_B = slots_T, first_B
        self.layers: tuple[Any, ...] = ()

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H]; the keys and values given are remembered."""
        return self.through(partial(_recall, mask), q_BTNH, k_BTKH, v_BTKH)

    def through(
        self, recall: Callable[..., tuple[jax.Array, Keys]], q_BTNH: jax.Array, *others: jax.Array
    ) -> jax.Array:
        """[B, T, N, H] by `recall(q_BTNH, *others, keys, slots_T, first_B)`, which remembers as well."""
        keys = next(self._before)
        layout = jax.typeof(q_BTNH).sharding.spec
        held = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, keys)
        laid = jax.sharding.auto_axes(recall, out_sharding=(layout, held))
        a_BTNH, keys = laid(q_BTNH, *others, keys, self._slots_T, self._first_B)
        self.layers += (keys,)
        return a_BTNH

    def recur(
        self, layer: Callable[..., tuple[jax.Array, Any]], empty: Any, x_BTD: jax.Array
    ) -> jax.Array:
        """What a recurrent layer makes of the tokens, after what it remembers; see `Recur`.

        It starts at the first token of a row, and so forgets the padding before.
        """
        starts_BT = self._slots_T[None] == self._first_B[:, None]
        y_BTD, state = layer(x_BTD, next(self._before), starts_BT)
        self.layers += (state,)
        return y_BTD


def remember(
    mask: Mask, k_BTKH: jax.Array, v_BTKH: jax.Array, keys: Keys, slots_T: jax.Array, first_B: jax.Array
) -> tuple[Seen, Keys]:  # fmt: skip
    """What the newest tokens see, and the keys with theirs. Slot s holds the newest one of s modulo S."""
    T, S = k_BTKH.shape[1], keys.k_BSKH.shape[1]
    newest = slots_T[-min(T, S) :]

    def written(cache_BSKH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        return cache_BSKH.at[:, newest % S].set(new_BTKH[:, -min(T, S) :].astype(cache_BSKH.dtype))

    def held(last: jax.Array) -> jax.Array:
        return last - (last - jnp.arange(S)) % S  # negative where nothing was written yet

    after = Keys(written(keys.k_BSKH, k_BTKH), written(keys.v_BSKH, v_BTKH))
    if T == 1:
        k_BSKH, v_BSKH, j_S = after.k_BSKH, after.v_BSKH, held(slots_T[-1])
    else:
        # A ring forgets what the first of many new tokens still see: they see the old ring as well.
        k_BSKH = jnp.concatenate([keys.k_BSKH, k_BTKH.astype(keys.k_BSKH.dtype)], axis=1)
        v_BSKH = jnp.concatenate([keys.v_BSKH, v_BTKH.astype(keys.v_BSKH.dtype)], axis=1)
        j_S = jnp.concatenate([held(slots_T[0] - 1), slots_T])
    allowed_TS = mask.allowed(slots_T[:, None], j_S[None])
    allowed_BTS = allowed_TS[None] & (j_S[None] >= first_B[:, None])[:, None]
    return Seen(k_BSKH, v_BSKH, slots_T, j_S, allowed_BTS), after


def weigh(seen: Seen, q_BTNH: jax.Array, bias_BKGTS: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H) + bias) v over what is seen, [B, T, N, H]; the softmax in fp32."""
    (B, T, N, H), K = q_BTNH.shape, seen.k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    s_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, seen.k_BSKH, preferred_element_type=jnp.float32
    )
    s_BKGTS = s_BKGTS * H**-0.5 + bias_BKGTS
    s_BKGTS = jnp.where(seen.allowed_BTS[:, None, None], s_BKGTS, HIDDEN)
    p_BKGTS = jax.nn.softmax(s_BKGTS, axis=-1).astype(seen.v_BSKH.dtype)
    a_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, seen.v_BSKH)
    return a_BTKGH.reshape(B, T, N, H)


def _recall(
    mask: Mask, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array,
    keys: Keys, slots_T: jax.Array, first_B: jax.Array,
) -> tuple[jax.Array, Keys]:  # fmt: skip
    seen, keys = remember(mask, k_BTKH, v_BTKH, keys, slots_T, first_B)
    bias_BKGTS = jnp.zeros((1, 1, 1, 1, 1), jnp.float32)
    if mask.slopes:
        slopes_KG = jnp.asarray(mask.slopes, jnp.float32).reshape(k_BTKH.shape[2], -1)
        bias_BKGTS = slant(slopes_KG, seen.i_T[:, None], seen.j_S[None])[None]
    return weigh(seen, q_BTNH, bias_BKGTS), keys
