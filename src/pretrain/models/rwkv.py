"""RWKV-4 (Peng et al., arXiv 2305.13048, section 3): a recurrent network, no attention.

Channels of time mixing are split over a mesh as feed-forward features are, and positions not at all:
where a mesh splits the sequence, every part of it computes the recurrence of the whole.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.kernels.mask import HIDDEN
from pretrain.models.attention import Context
from pretrain.models.init import Init, fan_in, normal, ones, zeros
from pretrain.models.layers import (
    INSIDE,
    RESIDUAL,
    AffineLayerNorm,
    Embedding,
    Head,
    Linear,
    Unembedding,
    along,
)
from pretrain.models.model import Architecture, Compute, LanguageModel
from pretrain.models.stack import Stack
from pretrain.sharding import gathered, lay, param, spec

ACROSS = "batch - mlp"  # how a recurrence lies: whole along the sequence, channels split


class RWKV(Architecture):
    """Time mixing and channel mixing by turns, both gated by receptances; no biases, untied head."""

    @property
    def split(self) -> tuple[tuple[str, int, str], ...]:
        """What a mesh splits: channels of time mixing too, of which there are d_model."""
        return ("d_model", self.d_model, "mlp"), *super().split

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)

    def memory(self, rows: int, length: int, dtype: jnp.dtype) -> tuple[Any, ...]:
        """The states of both mixings of a block, whatever the length."""
        before = jnp.zeros(
            (self.layers, rows, self.d_model), dtype, out_sharding=spec("layers batch -")
        )
        sums = Sums.empty((self.layers, rows, self.d_model), "layers batch mlp")
        return (before, sums), jnp.copy(before)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """What WKV remembers of the tokens before: both its sums, over exp(most), in fp32."""

    values: jax.Array  # of exp(key) value, decayed
    weights: jax.Array  # of exp(key), decayed
    most: jax.Array  # the largest exponent among them

    @classmethod
    def empty(cls, shape: tuple[int, ...], dims: str) -> "Sums":
        """Of no token."""
        values, weights = (jnp.zeros(shape, out_sharding=spec(dims)) for _ in range(2))
        return cls(values, weights, jnp.full(shape, HIDDEN, out_sharding=spec(dims)))


def wkv(
    k_BTA: jax.Array, v_BTA: jax.Array, decay_A: jax.Array, bonus_A: jax.Array,
    sums: Sums, starts_BT: jax.Array,
) -> tuple[jax.Array, Sums]:  # fmt: skip
    """Means of the values of this token and those before, weighted by e^key, in fp32 (section 3.1.2).

    A weight falls by e^decay with every token; the token itself has e^bonus times its weight.
    """
    w, u = decay_A[None], bonus_A[None]

    def step(sums: Sums, token: tuple[jax.Array, ...]) -> tuple[Sums, jax.Array]:
        k_BA, v_BA, start_B1 = token
        before = jnp.where(start_B1, HIDDEN, sums.most)  # e^HIDDEN is 0: sums of that weigh nothing
        most = jnp.maximum(before, u + k_BA)
        past, now = jnp.exp(before - most), jnp.exp(u + k_BA - most)
        y_BA = (past * sums.values + now * v_BA) / (past * sums.weights + now)
        most = jnp.maximum(before + w, k_BA)
        past, now = jnp.exp(before + w - most), jnp.exp(k_BA - most)
        return Sums(past * sums.values + now * v_BA, past * sums.weights + now, most), y_BA

    tokens = (k_BTA.astype(jnp.float32), v_BTA.astype(jnp.float32), starts_BT[..., None])
    sums, y_TBA = jax.lax.scan(step, sums, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
    return jnp.moveaxis(y_TBA, 0, 1), sums


def shifted(x_BTD: jax.Array, before_BD: jax.Array, starts_BT: jax.Array) -> jax.Array:
    """The token before each, [B, T, D], `INSIDE`; nothing where a document starts."""
    whole_BTD = lay(x_BTD, "batch - -")
    last_BTD = jnp.concatenate([before_BD[:, None], whole_BTD[:, :-1]], axis=1)
    return lay(jnp.where(starts_BT[..., None], jnp.zeros((), x_BTD.dtype), last_BTD), INSIDE)


def mixed(x_BTD: jax.Array, last_BTD: jax.Array, share: nnx.Param) -> jax.Array:
    """share * x_t + (1 - share) * x_{t-1}, a share for each feature (section 3.1.1)."""
    return last_BTD + along(x_BTD - last_BTD, share, jnp.multiply)


class TimeMixing(nnx.Module):
    """(sigmoid(r) * WKV(k, v)) W_o (section 3.1)."""

    def __init__(self, rngs: nnx.Rngs, d_model: int):
        self.key_share = param(rngs.params(), "hidden", (d_model,), ones)
        self.value_share = param(rngs.params(), "hidden", (d_model,), ones)
        self.receptance_share = param(rngs.params(), "hidden", (d_model,), ones)
        self.decay = param(rngs.params(), "mlp", (d_model,), zeros)  # the log of minus w
        self.bonus = param(rngs.params(), "mlp", (d_model,), zeros)  # u
        # As the released code: zeros keep the branches still at first.
        self.key = self._square(rngs, d_model, zeros)
        self.value = self._square(rngs, d_model, fan_in())
        self.receptance = self._square(rngs, d_model, zeros)
        self.out = Linear(rngs, "mlp -> embed", (d_model, d_model), zeros)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `INSIDE` in, `RESIDUAL` out."""
        B, _, D = x_BTD.shape
        before = jnp.zeros((B, D), x_BTD.dtype, out_sharding=spec("batch -"))
        return context.recur(self.mix, (before, Sums.empty((B, D), "batch mlp")), x_BTD)

    def mix(self, x_BTD: jax.Array, state: Any, starts_BT: jax.Array) -> tuple[jax.Array, Any]:
        """What is made of the tokens after a state, and the state after them; see `Recurrence`."""
        before_BD, sums = state
        last_BTD = shifted(x_BTD, before_BD, starts_BT)
        xk_BTD = mixed(x_BTD, last_BTD, self.key_share)
        xv_BTD = mixed(x_BTD, last_BTD, self.value_share)
        xr_BTD = mixed(x_BTD, last_BTD, self.receptance_share)
        k_BTA = checkpoint_name(self.key("BTD,DA->BTA", xk_BTD, "batch seq mlp"), "key")
        v_BTA = checkpoint_name(self.value("BTD,DA->BTA", xv_BTD, "batch seq mlp"), "value")
        r_BTA = checkpoint_name(self.receptance("BTD,DA->BTA", xr_BTD, "batch seq mlp"), "query")
        decay_A, bonus_A = -jnp.exp(gathered(self.decay[...])), gathered(self.bonus[...])
        y_BTA, sums = wkv(lay(k_BTA, ACROSS), lay(v_BTA, ACROSS), decay_A, bonus_A, sums, starts_BT)
        y_BTA = checkpoint_name(lay(y_BTA.astype(x_BTD.dtype), "batch seq mlp"), "attention")
        o_BTD = self.out("BTA,AD->BTD", jax.nn.sigmoid(r_BTA) * y_BTA, RESIDUAL)
        return o_BTD, (lay(x_BTD, "batch - -")[:, -1], sums)

    def _square(self, rngs: nnx.Rngs, d_model: int, init: Init) -> Linear:
        return Linear(rngs, "embed -> mlp", (d_model, d_model), init)


class ChannelMixing(nnx.Module):
    """sigmoid(r) * (max(k, 0)^2 W_v) (section 3.1.3)."""

    def __init__(self, rngs: nnx.Rngs, d_model: int, d_ff: int):
        self.key_share = param(rngs.params(), "hidden", (d_model,), ones)
        self.receptance_share = param(rngs.params(), "hidden", (d_model,), ones)
        self.key = Linear(rngs, "embed -> mlp", (d_model, d_ff), fan_in())
        self.receptance = Linear(rngs, "embed -> mlp", (d_model, d_model), zeros)
        self.value = Linear(rngs, "mlp -> embed", (d_ff, d_model), zeros)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """[B, T, D], `INSIDE` in, `RESIDUAL` out."""
        B, _, D = x_BTD.shape
        before_BD = jnp.zeros((B, D), x_BTD.dtype, out_sharding=spec("batch -"))
        return context.recur(self.mix, before_BD, x_BTD)

    def mix(
        self, x_BTD: jax.Array, before_BD: jax.Array, starts_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What is made of the tokens after one before, and the last of them; see `Recurrence`."""
        last_BTD = shifted(x_BTD, before_BD, starts_BT)
        xk_BTD = mixed(x_BTD, last_BTD, self.key_share)
        xr_BTD = mixed(x_BTD, last_BTD, self.receptance_share)
        k_BTF = checkpoint_name(self.key("BTD,DF->BTF", xk_BTD, "batch seq mlp"), "mlp_up")
        v_BTD = self.value("BTF,FD->BTD", jnp.square(jax.nn.relu(k_BTF)), RESIDUAL)
        r_BTA = self.receptance("BTD,DA->BTA", xr_BTD, "batch seq mlp")
        y_BTD = lay(jax.nn.sigmoid(r_BTA), RESIDUAL) * v_BTD
        return y_BTD, lay(x_BTD, "batch - -")[:, -1]


class Block(nnx.Module):
    """h = x + TimeMixing(LayerNorm(x)), then y = h + ChannelMixing(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: RWKV):
        self.time_norm = AffineLayerNorm(rngs, size.d_model)
        self.time = TimeMixing(rngs, size.d_model)
        self.channel_norm = AffineLayerNorm(rngs, size.d_model)
        self.channel = ChannelMixing(rngs, size.d_model, size.d_ff)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.time(lay(self.time_norm(x_BTD), INSIDE), context)
        return h_BTD + self.channel(lay(self.channel_norm(h_BTD), INSIDE), context)


class LM(LanguageModel):
    """Embedding and its norm, blocks, norm, head."""

    def __init__(self, rngs: nnx.Rngs, size: RWKV, compute: Compute):
        # Tiny rows behind a norm: the paper's small initial embedding.
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(1e-4), multiple=size.vocab_multiple
        )
        self.embedding_norm = AffineLayerNorm(rngs, size.d_model)
        self.stack = Stack(rngs, size.layers, partial(Block, size=size))
        begin(self.stack.blocks, size.layers, size.d_model)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.unembedding = Unembedding(
            rngs, size.vocab, size.d_model, init=fan_in(0.5), multiple=size.vocab_multiple
        )
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """LayerNorm of the rows of E."""
        return self.embedding_norm(self.embedding(tokens_BT, self.compute.jnp_dtype))

    def head(self) -> Head:
        """Logits = x W."""
        return self.unembedding.head(self.compute.jnp_dtype)


def begin(blocks: Any, layers: int, d_model: int) -> None:
    """Mixes, decays and bonuses of stacked blocks by layer and channel, as the released code's."""
    depth_L1 = jnp.arange(layers)[:, None] / max(layers - 1, 1)  # 0 to 1
    rest_L1 = 1 - jnp.arange(layers)[:, None] / layers  # 1 to almost 0
    i_1D = jnp.arange(d_model)[None]
    share_1D = i_1D / d_model
    time, channel = blocks.time, blocks.channel
    values = (
        (time.key_share, share_1D**rest_L1),
        (time.value_share, share_1D**rest_L1 + 0.3 * depth_L1),
        (time.receptance_share, share_1D ** (rest_L1 / 2)),
        (channel.key_share, share_1D**rest_L1),
        (channel.receptance_share, share_1D**rest_L1),
        (time.decay, 8 * (i_1D / (d_model - 1)) ** (0.7 + 1.3 * depth_L1) - 5),
        (time.bonus, jnp.log(0.3) + ((i_1D + 1) % 3 - 1) / 2 + jnp.zeros_like(depth_L1)),
    )
    for variable, value in values:
        variable[...] = lay(value, variable.get_metadata("dims"))
