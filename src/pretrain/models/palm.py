"""PaLM (Chowdhery et al., arXiv 2204.02311, section 2)."""

from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import fan_in, normal
from pretrain.models.layers import (
    PARTS,
    RESIDUAL,
    SHARED,
    Embedding,
    GatedMLP,
    Head,
    LayerNorm,
    RMSNorm,
)
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay


class PaLM(Decoder):
    """Parallel blocks, SwiGLU, RoPE, one key/value head, no biases, tied embeddings, scaled logits."""

    rope: Rope = Rope()  # rotary positions; the paper gives neither base nor pairing

    @property
    def key_value_heads(self) -> int:
        """One: multi-query attention."""
        return 1

    @property
    def sums(self) -> int:
        """One, of both halves."""
        return 1

    def norm(self, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
        """LayerNorm without a bias."""
        return LayerNorm(rngs, self.d_model)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class RMSPaLM(PaLM):
    """PaLM with RMSNorm in place of LayerNorm."""

    def norm(self, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
        """RMSNorm."""
        return RMSNorm(rngs, self.d_model)


class Block(nnx.Module):
    """y = x + Attention(Norm(x)) + MLP(Norm(x)), one norm for both."""

    def __init__(self, rngs: nnx.Rngs, size: PaLM, mask: Mask):
        self.norm = size.norm(rngs)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=1, head_dim=size.head_dim,
            mask=mask, init=fan_in(), out_init=fan_in(), out_dims=PARTS,
        )  # fmt: skip
        self.mlp = GatedMLP(
            rngs, size.d_model, size.d_ff, act=jax.nn.silu, init=fan_in(), out_init=fan_in(),
            out_dims=PARTS,
        )  # fmt: skip

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        y_BTD = lay(self.norm(x_BTD), SHARED)
        return x_BTD + lay(self.attention(y_BTD, context) + self.mlp(y_BTD), RESIDUAL)


class LM(LanguageModel):
    """Embedding, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: PaLM, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(1.0), multiple=size.vocab_multiple
        )
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = size.norm(rngs)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x E^T / sqrt(d_model)."""
        return self.embedding.head(self.compute.jnp_dtype, scale=self.size.d_model**-0.5)
