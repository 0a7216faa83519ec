"""BLOOM (Le Scao et al., arXiv 2211.05100, section 3.2)."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Alibi, Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.dropout import Dropout
from pretrain.models.init import normal
from pretrain.models.layers import MLP, SHARED, Affine, AffineLayerNorm, Embedding, Head
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=True)  # the released code's tanh form


class Bloom(Decoder):
    """Pre-LayerNorm, ALiBi, a norm after the embedding, GELU, biases everywhere, tied embeddings."""

    dropout: Dropout = Dropout()  # what training drops

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Causal, with ALiBi's slopes."""
        return (Alibi.of(self.heads),)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: Bloom, mask: Mask):
        # Of the scripts that trained every size; Megatron-LM divides by sqrt(2 L) on the way out.
        init, out_init = normal(0.0048), normal(0.0048 / math.sqrt(2 * size.layers))
        self.attention_norm = AffineLayerNorm(rngs, size.d_model)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=out_init, linear=Affine,
        )  # fmt: skip
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model)
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=out_init, linear=Affine
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        h_BTD = x_BTD + context.drop(a_BTD, "attention")
        m_BTD = self.mlp(lay(self.mlp_norm(h_BTD), SHARED))
        return h_BTD + context.drop(m_BTD, "mlp")


class LM(LanguageModel):
    """Embedding and its norm, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: Bloom, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(0.0048), multiple=size.vocab_multiple
        )
        self.embedding_norm = AffineLayerNorm(rngs, size.d_model)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """LayerNorm of the rows of E."""
        return self.embedding_norm(self.embedding(tokens_BT, self.compute.jnp_dtype))

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
