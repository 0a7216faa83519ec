"""Gemma (Gemma Team, arXiv 2403.08295, section 2)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal, zeros
from pretrain.models.layers import SHARED, Embedding, GatedMLP, Head, along
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay, param

gelu = partial(jax.nn.gelu, approximate=True)  # the released code's tanh form


class Gemma(Decoder):
    """Pre-RMSNorm, GeGLU, RoPE, grouped-query attention, no biases, tied and scaled embeddings."""

    kv_heads: int  # key/value heads
    norm_eps: float = 1e-6  # added to the mean square in every norm
    rope: Rope = Rope()  # rotary positions

    @property
    def key_value_heads(self) -> int:
        """As configured."""
        return self.kv_heads

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class OffsetRMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + offset), in fp32 to the end, as the released code does."""

    def __init__(self, rngs: nnx.Rngs, d_model: int, eps: float):
        self.offset = param(rngs.params(), "hidden", (d_model,), zeros)
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalised over D, in x's dtype."""
        x32 = x_BTD.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return along(x32, self.offset, lambda x, offset: x * (1 + offset)).astype(x_BTD.dtype)


class Block(nnx.Module):
    """h = x + Attention(RMSNorm(x)), then y = h + MLP(RMSNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: Gemma, mask: Mask):
        # The paper does not say how it initialises; N(0, 0.02^2) is the field's habit.
        init = normal(0.02)
        self.attention_norm = OffsetRMSNorm(rngs, size.d_model, size.norm_eps)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.kv_heads,
            head_dim=size.head_dim, mask=mask, init=init, out_init=init,
        )  # fmt: skip
        self.mlp_norm = OffsetRMSNorm(rngs, size.d_model, size.norm_eps)
        self.mlp = GatedMLP(rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=init)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        return h_BTD + self.mlp(lay(self.mlp_norm(h_BTD), SHARED))


class LM(LanguageModel):
    """Scaled embedding, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: Gemma, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(0.02), multiple=size.vocab_multiple
        )
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = OffsetRMSNorm(rngs, size.d_model, size.norm_eps)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """sqrt(D) times rows of E; the root is rounded to the dtype, as in the released code."""
        rows_BTD = self.embedding(tokens_BT, self.compute.jnp_dtype)
        return rows_BTD * jnp.asarray(math.sqrt(self.size.d_model), rows_BTD.dtype)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
