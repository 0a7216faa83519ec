"""Self-attention with any number of key/value heads, and what a block is told beside its input."""

from dataclasses import dataclass
from typing import Protocol

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.kernels.attention import Attention
from pretrain.kernels.mask import Mask
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
