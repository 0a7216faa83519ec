"""GPT-1 (Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018)."""

from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.dropout import Dropout
from pretrain.models.init import normal
from pretrain.models.layers import MLP, SHARED, Affine, AffineLayerNorm, Embedding, Head
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Learned
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=True)  # the released code's tanh form


class GPT1(Decoder):
    """Post-LayerNorm, learned positions, GELU, biases everywhere, tied embeddings."""

    context: int  # rows of the position table, the longest sequence
    dropout: Dropout = Dropout()  # what training drops

    @property
    def max_context(self) -> int | None:
        """The rows of the position table."""
        return self.context

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = LayerNorm(x + Attention(x)), then y = LayerNorm(h + MLP(h))."""

    def __init__(self, rngs: nnx.Rngs, size: GPT1, mask: Mask):
        init = normal(0.02)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=init, linear=Affine,
        )  # fmt: skip
        self.attention_norm = AffineLayerNorm(rngs, size.d_model)
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=init, linear=Affine
        )
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(x_BTD, SHARED), context)
        h_BTD = self.attention_norm(x_BTD + context.drop(a_BTD, "attention"))
        m_BTD = self.mlp(lay(h_BTD, SHARED))
        return self.mlp_norm(h_BTD + context.drop(m_BTD, "mlp"))


class LM(LanguageModel):
    """Token and position embeddings, blocks, and the token embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: GPT1, compute: Compute):
        init = normal(0.02)
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=init, multiple=size.vocab_multiple
        )
        self.positions = Learned(rngs, size.context, size.d_model, init=init)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = jax.nn.identity  # the last block has ended with one
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E plus rows of P."""
        e_BTD = self.embedding(tokens_BT, self.compute.jnp_dtype)
        return self.positions(e_BTD, positions_BT)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
