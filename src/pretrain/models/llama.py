"""LLaMA 1 and 2 (Touvron et al., arXiv 2302.13971 and 2307.09288, section 2), and 3 (arXiv 2407.21783)."""

from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal
from pretrain.models.layers import SHARED, Embedding, GatedMLP, Head, RMSNorm
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.output import Untied
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay


class LLaMA(Decoder):
    """Pre-RMSNorm, SwiGLU, RoPE, grouped-query attention, no biases."""

    kv_heads: int  # key/value heads
    norm_eps: float = 1e-5  # added to the mean square in every norm
    rope: Rope = Rope()  # rotary positions
    output: Untied = Untied()  # the output head; `Tied()` is the embedding again

    @property
    def key_value_heads(self) -> int:
        """As configured."""
        return self.kv_heads

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + Attention(RMSNorm(x)), then y = h + MLP(RMSNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: LLaMA, mask: Mask):
        # The papers do not say how they initialise; N(0, 0.02^2) is the field's habit.
        init = normal(0.02)
        self.attention_norm = RMSNorm(rngs, size.d_model, size.norm_eps)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.kv_heads,
            head_dim=size.head_dim, mask=mask, init=init, out_init=init,
        )  # fmt: skip
        self.mlp_norm = RMSNorm(rngs, size.d_model, size.norm_eps)
        self.mlp = GatedMLP(
            rngs, size.d_model, size.d_ff, act=jax.nn.silu, init=init, out_init=init
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        return h_BTD + self.mlp(lay(self.mlp_norm(h_BTD), SHARED))


class LM(LanguageModel):
    """Embedding, blocks, norm, head."""

    def __init__(self, rngs: nnx.Rngs, size: LLaMA, compute: Compute):
        init, multiple = normal(0.02), size.vocab_multiple
        self.embedding = Embedding(rngs, size.vocab, size.d_model, init=init, multiple=multiple)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = RMSNorm(rngs, size.d_model, size.norm_eps)
        self.unembedding = size.output.build(
            rngs, size.vocab, size.d_model, init=init, multiple=multiple
        )
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x W, or x E^T where tied."""
        return self.unembedding(self.embedding, self.compute.jnp_dtype)
