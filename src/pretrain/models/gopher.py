"""Gopher (Rae et al., arXiv 2112.11446, section 3) and Chinchilla (Hoffmann et al., arXiv 2203.15556)."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context
from pretrain.models.init import normal
from pretrain.models.layers import MLP, SHARED, Embedding, Head, RMSNorm
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.relative import RelativeAttention
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=True)  # the papers name no activation


class Gopher(Decoder):
    """GPT-2 with RMSNorm and Transformer-XL's relative positions; no biases, tied embeddings.

    Neither biases nor the tie are in the papers: the published sizes follow from both.
    """

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + RelativeAttention(RMSNorm(x)), then y = h + MLP(RMSNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: Gopher, mask: Mask):
        # The papers do not say how they initialise; these are GPT-2's.
        init, out_init = normal(0.02), normal(0.02 / math.sqrt(2 * size.layers))
        self.attention_norm = RMSNorm(rngs, size.d_model)
        self.attention = RelativeAttention(
            rngs, d_model=size.d_model, heads=size.heads, head_dim=size.head_dim, mask=mask,
            init=init, out_init=out_init,
        )  # fmt: skip
        self.mlp_norm = RMSNorm(rngs, size.d_model)
        self.mlp = MLP(rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=out_init)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        return h_BTD + self.mlp(lay(self.mlp_norm(h_BTD), SHARED))


class LM(LanguageModel):
    """Embedding, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: Gopher, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(0.02), multiple=size.vocab_multiple
        )
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = RMSNorm(rngs, size.d_model)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
