"""Positions: rotary embeddings as config nodes, learned tables as a layer."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.config import Mistake, Node
from pretrain.models.init import Init
from pretrain.models.rope_scaling import Scaling
from pretrain.sharding import gathered, lay, param, spec


class Rotation(Protocol):
    """Turns queries or keys [B, T, heads, H] by their positions."""

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """The same shape and dtype, rotated."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Still:
    """No rotation: families whose positions enter elsewhere."""

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """x itself."""
        return x_BTNH


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HalfRotation:
    """Pairs feature i with i + h, as GPT-NeoX and Hugging Face store LLaMA; those beyond 2h do not turn."""

    cos_BT1h: jax.Array
    sin_BT1h: jax.Array

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """The two halves of the turning features turned by the angle of their position."""
        cos, sin = self.cos_BT1h.astype(x_BTNH.dtype), self.sin_BT1h.astype(x_BTNH.dtype)
        h = cos.shape[-1]
        a, b, still = x_BTNH[..., :h], x_BTNH[..., h : 2 * h], x_BTNH[..., 2 * h :]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, still], -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterleavedRotation:
    """Pairs feature 2i with 2i + 1, as the RoFormer paper and Meta's LLaMA do."""

    cos_BT1h: jax.Array
    sin_BT1h: jax.Array

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """Neighbours among the turning features turned by the angle of their position."""
        cos, sin = self.cos_BT1h.astype(x_BTNH.dtype), self.sin_BT1h.astype(x_BTNH.dtype)
        turning = 2 * cos.shape[-1]
        a, b = x_BTNH[..., 0:turning:2], x_BTNH[..., 1:turning:2]
        pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
        turned = pairs.reshape(*x_BTNH.shape[:-1], turning)
        return jnp.concatenate([turned, x_BTNH[..., turning:]], -1)


class Rope(Node):
    """Rotary position embedding (Su et al., arXiv 2104.09864), halves paired."""

    base: float = 10_000.0  # the slowest pair turns once in about 2 pi base positions
    dims: int | None = None  # features of a head that turn, its first ones; None turns all
    scaling: Scaling = Scaling()  # how the frequencies are stretched for longer contexts

    def rotation(self, positions_BT: jax.Array, head_dim: int) -> Rotation:
        """The rotation of these positions ([1, T] where all rows are alike), angles in fp32."""
        return HalfRotation(*self._turns(positions_BT, head_dim))

    def _turns(self, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        if self.dims is None and head_dim % 2:
            raise Mistake(
                f"model.head_dim is {head_dim}: rope turns pairs of features, make it even."
            )
        dims = head_dim if self.dims is None else self.dims
        if dims % 2 or not 0 < dims <= head_dim:
            raise Mistake(
                f"model.rope.dims is {dims} and model.head_dim is {head_dim}: rope turns pairs of "
                f"features, so make dims even and at most {head_dim}."
            )
        self.scaling.check()
        length = jnp.max(positions_BT) + 1
        frequency_h = self.scaling.frequencies(self.base, dims, length)
        angle_BT1h = (
            positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_h[None, None, None]
        )
        magnitude = self.scaling.magnitude
        return jnp.cos(angle_BT1h) * magnitude, jnp.sin(angle_BT1h) * magnitude


class InterleavedRope(Rope):
    """Rotary position embedding, neighbours paired."""

    def rotation(self, positions_BT: jax.Array, head_dim: int) -> Rotation:
        """The rotation of these positions ([1, T] where all rows are alike), angles in fp32."""
        return InterleavedRotation(*self._turns(positions_BT, head_dim))


class Learned(nnx.Module):
    """One learned vector a position, added to the embeddings (GPT-1/2/3)."""

    def __init__(self, rngs: nnx.Rngs, context: int, d_model: int, init: Init):
        self.table = param(rngs.params(), "positions -> embed", (context, d_model), init)

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """x plus the vectors of its positions, in x's dtype and layout; positions may be [1, T].

        Their gradients, sums over the batch, are added in fp32.
        """
        rows = "batch" if positions_BT.shape[0] > 1 else "-"
        p_BTD = gathered(self.table[...]).at[positions_BT].get(out_sharding=spec(f"{rows} seq -"))
        p_BTD = lay(p_BTD, f"{rows} residual_seq residual")
        held = jax.typeof(x_BTD).sharding.spec
        p_BTD = jnp.broadcast_to(p_BTD, x_BTD.shape, out_sharding=held)
        return x_BTD + p_BTD.astype(x_BTD.dtype)


def positions(tokens_BT: jax.Array) -> jax.Array:
    """0 ... T-1 as [1, T], split as the tokens are: rows that are one document or not told apart."""
    return jax.lax.broadcasted_iota(
        jnp.int32, (1, tokens_BT.shape[1]), 1, out_sharding=spec("- seq")
    )
