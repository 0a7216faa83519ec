"""Self-attention with any number of key/value heads, and what a block is told beside its input."""

import functools
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.kernels.attention import HIDDEN, Attention, Mask
from pretrain.models.init import Init
from pretrain.models.layers import RESIDUAL, Linear
from pretrain.models.positions import Rotation


class Attend(Protocol):
    """Mixes values by the match of queries and keys: over a whole sequence, or through a cache."""

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H], laid out as the queries are."""
        ...


@dataclass(frozen=True)
class Whole:
    """Attention over whole sequences by a kernel, within documents where segments are given."""

    kernel: Attention
    segments_BT: jax.Array | None

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H], laid out as the queries are."""
        return self.kernel(q_BTNH, k_BTKH, v_BTKH, self.segments_BT, mask)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens that a batch of rows has seen, for decoding.

    Rows may have different lengths: entries at and beyond a row's length are never attended to, so a
    prompt padded on the right is trimmed by setting `length_B`.
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    length_B: jax.Array

    def positions(self, tokens: int) -> jax.Array:
        """Positions [B, T] of the next tokens of each row."""
        return self.length_B[:, None] + jnp.arange(tokens)[None, :]


class Recall:
    """Attention of the newest tokens through one layer's cache, which it lengthens as it goes."""

    def __init__(self, k_BSKH: jax.Array, v_BSKH: jax.Array, positions_BT: jax.Array):
        self.k_BSKH, self.v_BSKH, self.positions_BT = k_BSKH, v_BSKH, positions_BT

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H]; the keys and values given are written at their positions first."""
        layouts = tuple(jax.typeof(x).sharding.spec for x in (q_BTNH, self.k_BSKH, self.v_BSKH))
        recall = jax.sharding.auto_axes(functools.partial(_recall, mask), out_sharding=layouts)
        a_BTNH, self.k_BSKH, self.v_BSKH = recall(
            q_BTNH, k_BTKH, v_BTKH, self.k_BSKH, self.v_BSKH, self.positions_BT
        )
        return a_BTNH


def _recall(
    mask: Mask, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array,
    k_BSKH: jax.Array, v_BSKH: jax.Array, where_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    rows_B1 = jnp.arange(B)[:, None]
    k_BSKH = k_BSKH.at[rows_B1, where_BT].set(k_BTKH)
    v_BSKH = v_BSKH.at[rows_B1, where_BT].set(v_BTKH)
    allowed_BTS = mask.allowed(where_BT[:, :, None], jnp.arange(S)[None, None, :])
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    s_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    s_BKGTS = jnp.where(allowed_BTS[:, None, None], s_BKGTS * H**-0.5, HIDDEN)
    p_BKGTS = jax.nn.softmax(s_BKGTS, axis=-1).astype(v_BSKH.dtype)
    a_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH)
    return a_BTKGH.reshape(B, T, N, H), k_BSKH, v_BSKH


@dataclass(frozen=True)
class Context:
    """What every block of a forward pass shares: where its tokens stand and whom they may attend to."""

    rotate: Rotation
    attend: Attend


class SelfAttention(nnx.Module):
    """softmax(q k / sqrt(H)) v: multi-head (K = N), grouped-query (1 < K < N) or multi-query (K = 1).

    Grouped-query attention is Ainslie et al., arXiv 2305.13245; multi-query Shazeer, arXiv 1911.02150.
    """

    def __init__(
        self, rngs: nnx.Rngs, *, d_model: int, heads: int, kv_heads: int, head_dim: int, mask: Mask,
        init: Init, out_init: Init, linear: type[Linear] = Linear,
    ):  # fmt: skip
        # One key/value head stays whole under tensor parallelism: there is nothing to split.
        self.kv = "kv_heads" if kv_heads > 1 else "-"
        self.query = linear(rngs, "embed -> heads head_dim", (d_model, heads, head_dim), init)
        self.key = linear(rngs, f"embed -> {self.kv} head_dim", (d_model, kv_heads, head_dim), init)
        self.value = linear(
            rngs, f"embed -> {self.kv} head_dim", (d_model, kv_heads, head_dim), init
        )
        self.out = linear(rngs, "heads head_dim -> embed", (heads, head_dim, d_model), out_init)
        self.mask = mask

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `INSIDE` in, `RESIDUAL` out."""
        kv_dims = f"batch seq {self.kv} head_dim"
        q_BTNH = self.query("BTD,DNH->BTNH", x_BTD, "batch seq heads head_dim")
        k_BTKH = self.key("BTD,DKH->BTKH", x_BTD, kv_dims)
        v_BTKH = self.value("BTD,DKH->BTKH", x_BTD, kv_dims)
        q_BTNH = checkpoint_name(context.rotate(q_BTNH), "query")
        k_BTKH = checkpoint_name(context.rotate(k_BTKH), "key")
        v_BTKH = checkpoint_name(v_BTKH, "value")
        a_BTNH = checkpoint_name(context.attend(q_BTNH, k_BTKH, v_BTKH, self.mask), "attention")
        return self.out("BTNH,NHD->BTD", a_BTNH, RESIDUAL)
