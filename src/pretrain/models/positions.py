"""Positions: rotary embeddings as config nodes, learned tables as a layer."""

from dataclasses import dataclass, field
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
class Turn:
    """y = x cos + partner(x) sin (RoFormer, equation 34), for features that turn in pairs.

    A feature that does not turn has a cosine of 1 and a sine of 0.
    """

    cos_BT1H: jax.Array
    sin_BT1H: jax.Array  # of the first of a pair minus the sine

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """Each pair of features turned by the angle of its position."""
        cos, sin = self.cos_BT1H.astype(x_BTNH.dtype), self.sin_BT1H.astype(x_BTNH.dtype)
        partner_BTNH = jax.lax.platform_dependent(
            x_BTNH, tpu=self._multiplied, default=self.partner
        )
        return x_BTNH * cos + partner_BTNH * sin

    def partner(self, x: jax.Array) -> jax.Array:
        """For each feature that turns the other one of its pair."""
        raise NotImplementedError

    def _multiplied(self, x_BTNH: jax.Array) -> jax.Array:
        """The same as a product with ones and zeros.

        TPUs have features along the lanes of a register: to cut and join there takes two more passes
        over memory, a product none. With the highest precision no bit is lost.
        """
        H = x_BTNH.shape[-1]
        return jnp.einsum(
            "BTNH,HP->BTNP", x_BTNH, self.partner(jnp.eye(H, dtype=x_BTNH.dtype)),
            precision=jax.lax.Precision.HIGHEST, out_sharding=jax.typeof(x_BTNH).sharding,
        )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HalfRotation(Turn):
    """Pairs feature i with i + h, as GPT-NeoX and Hugging Face store LLaMA."""

    turning: int = field(metadata={"static": True})  # 2h, the first features of a head

    def partner(self, x: jax.Array) -> jax.Array:
        """The two halves of the turning features, swapped."""
        h = self.turning // 2
        return jnp.concatenate([x[..., h : 2 * h], x[..., :h], x[..., 2 * h :]], -1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterleavedRotation(Turn):
    """Pairs feature 2i with 2i + 1, as the RoFormer paper and Meta's LLaMA do."""

    turning: int = field(metadata={"static": True})  # the first features of a head

    def partner(self, x: jax.Array) -> jax.Array:
        """Neighbours among the turning features, swapped."""
        pairs = x[..., : self.turning].reshape(*x.shape[:-1], self.turning // 2, 2)
        swapped = jnp.flip(pairs, -1).reshape(*x.shape[:-1], self.turning)
        return jnp.concatenate([swapped, x[..., self.turning :]], -1)


class Rope(Node):
    """Rotary position embedding (Su et al., arXiv 2104.09864), halves paired."""

    base: float = 10_000.0  # the slowest pair turns once in about 2 pi base positions
    dims: int | None = None  # features of a head that turn, its first ones; None turns all
    scaling: Scaling = Scaling()  # how the frequencies are stretched for longer contexts

    def rotation(self, positions_BT: jax.Array, head_dim: int) -> Rotation:
        """The rotation of these positions ([1, T] where all rows are alike), angles in fp32."""
        cos, sin = self._turns(positions_BT, head_dim)
        return HalfRotation(
            _padded(jnp.concatenate([cos, cos], -1), head_dim, 1),
            _padded(jnp.concatenate([-sin, sin], -1), head_dim, 0),
            turning=2 * cos.shape[-1],
        )

    def _turns(self, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine of each pair, [B, T, 1, h]."""
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
        cos, sin = self._turns(positions_BT, head_dim)
        return InterleavedRotation(
            _padded(jnp.repeat(cos, 2, -1), head_dim, 1),
            _padded(jnp.stack([-sin, sin], -1).reshape(*sin.shape[:-1], -1), head_dim, 0),
            turning=2 * cos.shape[-1],
        )


def _padded(x_BT1H: jax.Array, head_dim: int, value: float) -> jax.Array:
    """As many features as a head has, those behind filled with a value."""
    more = head_dim - x_BT1H.shape[-1]
    return jnp.pad(x_BT1H, [(0, 0)] * 3 + [(0, more)], constant_values=value) if more else x_BT1H


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
