"""OPT (Zhang et al., arXiv 2205.01068, section 2), as released."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.dropout import Dropout
from pretrain.models.init import normal
from pretrain.models.layers import (
    INSIDE,
    MLP,
    RESIDUAL,
    SHARED,
    Affine,
    AffineLayerNorm,
    Embedding,
    Head,
    Linear,
)
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Learned
from pretrain.models.stack import Stack
from pretrain.sharding import lay

OFFSET = 2  # rows of the position table before that of position 0, as in fairseq


class OPT(Decoder):
    """Pre-LayerNorm, learned positions, ReLU, biases everywhere, tied embeddings."""

    context: int  # positions, the longest sequence
    dropout: Dropout = Dropout()  # what training drops

    @property
    def max_context(self) -> int | None:
        """As configured."""
        return self.context

    def build(self, rngs: nnx.Rngs, compute: Compute) -> LanguageModel:
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class PostNormOPT(OPT):
    """The 350M size: norms behind the sublayers, none at the end, and embeddings narrower than the rest."""

    d_embed: int  # features of an embedding

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields that are counts, each 1 or more."""
        return (*super().sizes, "d_embed")

    @property
    def split(self) -> tuple[tuple[str, int, str], ...]:
        """What a mesh splits."""
        E = self.d_embed
        return ("d_embed", E, "embed"), ("d_embed", E, "residual"), *super().split

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "PostNormLM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return PostNormLM(rngs, self, compute)


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
        a_BTD = self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        h_BTD = x_BTD + context.drop(a_BTD, "attention")
        m_BTD = self.mlp(lay(self.mlp_norm(h_BTD), SHARED))
        return h_BTD + context.drop(m_BTD, "mlp")


class PostNormBlock(Block):
    """h = LayerNorm(x + Attention(x)), then y = LayerNorm(h + MLP(h))."""

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(x_BTD, SHARED), context)
        h_BTD = self.attention_norm(x_BTD + context.drop(a_BTD, "attention"))
        m_BTD = self.mlp(lay(h_BTD, SHARED))
        return self.mlp_norm(h_BTD + context.drop(m_BTD, "mlp"))


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
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E plus rows of P."""
        e_BTD = self.embedding(tokens_BT, self.compute.jnp_dtype)
        return self.positions(e_BTD, positions_BT + OFFSET)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)


class PostNormLM(LanguageModel):
    """Token embeddings widened, position embeddings, blocks, and the token embedding again, narrowed to."""

    def __init__(self, rngs: nnx.Rngs, size: PostNormOPT, compute: Compute):
        E, D, init = size.d_embed, size.d_model, normal(0.006)
        self.embedding = Embedding(rngs, size.vocab, E, init=init, multiple=size.vocab_multiple)
        self.widen = Linear(rngs, "embed -> -", (E, D), init)
        self.positions = Learned(rngs, OFFSET + size.context, D, init=init)
        kinds = [partial(PostNormBlock, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.narrow = Linear(rngs, "embed -> -", (D, E), init)
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E, widened, plus rows of P."""
        e_BTE = lay(self.embedding(tokens_BT, self.compute.jnp_dtype), INSIDE)
        x_BTD = self.widen("BTE,ED->BTD", e_BTE, RESIDUAL)
        return self.positions(x_BTD, positions_BT + OFFSET)

    def norm(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, E], what the head takes; the last block has ended with a norm."""
        return self.narrow("BTD,DE->BTE", lay(x_BTD, INSIDE), INSIDE)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
