"""Self-attention with any number of key/value heads, and what a block is told beside its input."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.kernels.attention import Attention
from pretrain.kernels.mask import Mask
from pretrain.models.dropout import NOTHING, Drops
from pretrain.models.init import Init
from pretrain.models.layers import RESIDUAL, Linear
from pretrain.models.positions import Rotation
from pretrain.sharding import lay


class Attend(Protocol):
    """Mixes values by the match of queries and keys: over a whole sequence, or through a cache."""

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H], laid out as the queries are."""
        ...


# (x_BTD, what is remembered of the tokens before, starts_BT) -> (y_BTD, what is remembered then);
# nothing before a token that starts a document may reach it.
Recurrence = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]


class Recur(Protocol):
    """Carries a recurrent layer along the tokens: a whole sequence, or the newest of a cache."""

    def __call__(self, layer: Recurrence, empty: Any, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D]; `empty` is what is remembered of no token."""
        ...


@dataclass(frozen=True)
class Whole:
    """Attention over whole sequences by a kernel, within documents where segments are given."""

    kernel: Attention
    segments_BT: jax.Array | None
    drops: Drops = NOTHING

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask
    ) -> jax.Array:
        """[B, T, N, H], laid out as the queries are."""
        drop = self.drops.probabilities(q_BTNH)
        return self.kernel(q_BTNH, k_BTKH, v_BTKH, self.segments_BT, mask, drop)

    def recur(self, layer: Recurrence, empty: Any, x_BTD: jax.Array) -> jax.Array:
        """What a recurrent layer makes of the tokens, from nothing at the start of each document."""
        if self.segments_BT is None:
            starts_BT = jnp.arange(x_BTD.shape[1])[None] == 0
        else:
            segments_BT = lay(self.segments_BT, "batch -")
            changes_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
            starts_BT = jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)
        return layer(x_BTD, empty, starts_BT)[0]


@dataclass(frozen=True)
class Context:
    """What every block of a forward pass is told.

    Where its tokens stand, whom they may attend to, and what it drops: nothing but in a train step.
    """

    rotate: Rotation
    attend: Attend
    recur: Recur
    drop: Drops = NOTHING

    def dropping(self, drops: Drops) -> "Context":
        """The same for a block that has its own to drop."""
        if not isinstance(self.attend, Whole):  # through a cache nothing is ever dropped
            return self
        return replace(self, drop=drops, attend=replace(self.attend, drops=drops))


class SelfAttention(nnx.Module):
    """softmax(q k / sqrt(H)) v: multi-head (K = N), grouped-query (1 < K < N) or multi-query (K = 1).

    Grouped-query attention is Ainslie et al., arXiv 2305.13245; multi-query Shazeer, arXiv 1911.02150.
    """

    def __init__(
        self, rngs: nnx.Rngs, *, d_model: int, heads: int, kv_heads: int, head_dim: int, mask: Mask,
        init: Init, out_init: Init, linear: type[Linear] = Linear, out_dims: str = RESIDUAL,
    ):  # fmt: skip
        # One key/value head stays whole under tensor parallelism: there is nothing to split.
        self.kv = "kv_heads" if kv_heads > 1 else "-"
        self.query = linear(rngs, "embed -> heads head_dim", (d_model, heads, head_dim), init)
        self.key = linear(rngs, f"embed -> {self.kv} head_dim", (d_model, kv_heads, head_dim), init)
        self.value = linear(
            rngs, f"embed -> {self.kv} head_dim", (d_model, kv_heads, head_dim), init
        )
        self.out = linear(rngs, "heads head_dim -> embed", (heads, head_dim, d_model), out_init)
        self.mask, self.out_dims = mask, out_dims

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `SHARED` in, `out_dims` out."""
        q_BTNH = self.query("BTD,DNH->BTNH", x_BTD, "batch seq heads head_dim")
        k_BTKH, v_BTKH = self._shared(self.key, x_BTD), self._shared(self.value, x_BTD)
        q_BTNH = checkpoint_name(context.rotate(q_BTNH), "query")
        k_BTKH = checkpoint_name(context.rotate(k_BTKH), "key")
        v_BTKH = checkpoint_name(v_BTKH, "value")
        a_BTNH = context.attend(q_BTNH, k_BTKH, v_BTKH, self.mask)  # the kernel names what it keeps
        return self.out("BTNH,NHD->BTD", a_BTNH, self.out_dims)

    def _shared(self, project: Linear, x_BTD: jax.Array) -> jax.Array:
        """Keys or values, [B, T, K, H]."""
        dims = f"batch seq {self.kv} head_dim"
        if self.kv == "kv_heads":
            return project("BTD,DKH->BTKH", x_BTD, dims)
        # Or every device along `tensor` would do the same product of the one head; so each does a part.
        part = project("BTD,DKH->BTKH", lay(x_BTD, RESIDUAL), "batch residual_seq - head_dim")
        return lay(part, dims)
