"""OPT (Zhang et al., arXiv 2205.01068, section 2), as released."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal
from pretrain.models.layers import INSIDE, MLP, Affine, AffineLayerNorm, Embedding, Head
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Learned
from pretrain.models.stack import Stack
from pretrain.sharding import lay

OFFSET = 2  # rows of the position table before that of position 0, as in fairseq


class OPT(Decoder):
    """Pre-LayerNorm, learned positions, ReLU, biases everywhere, tied embeddings."""

    context: int  # positions, the longest sequence

    @property
    def max_context(self) -> int | None:
        """As configured."""
        return self.context

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: OPT, mask: Mask):
        # Section 2.2: "standard deviation of 0.006 ... for output layers scaled by 1 / sqrt(2 L)"
        init, out_init = normal(0.006), normal(0.006 / math.sqrt(2 * size.layers))
        self.attention_norm = AffineLayerNorm(rngs, size.d_model)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=out_init, linear=Affine,
        )  # fmt: skip
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model)
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff,
            act=jax.nn.relu, init=init, out_init=out_init, linear=Affine,
        )  # fmt: skip

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.attention(lay(self.attention_norm(x_BTD), INSIDE), context)
        return h_BTD + self.mlp(lay(self.mlp_norm(h_BTD), INSIDE))


class LM(LanguageModel):
    """Token and position embeddings, blocks, norm, and the token embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: OPT, compute: Compute):
        init = normal(0.006)
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=init, multiple=size.vocab_multiple
        )
        self.positions = Learned(rngs, OFFSET + size.context, size.d_model, init=init)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E plus rows of P."""
        dtype = self.compute.jnp_dtype
        return self.embedding(tokens_BT, dtype) + self.positions(positions_BT + OFFSET, dtype)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
