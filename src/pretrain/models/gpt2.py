"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3)."""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Causal, Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.dropout import Dropout
from pretrain.models.init import normal
from pretrain.models.layers import MLP, SHARED, Affine, AffineLayerNorm, Embedding, Head
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Learned
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=True)  # the released code's tanh form


class GPT2(Decoder):
    """Pre-LayerNorm, learned positions, GELU, biases everywhere, tied embeddings."""

    context: int  # rows of the position table, the longest sequence
    # positions that a token sees in successive layers, by turns: GPT-3's are dense and banded
    windows: tuple[int | None, ...] = (None,)
    dropout: Dropout = Dropout()  # what training drops
    init_std: float = 0.02  # standard deviation that matrices and token embeddings start with
    positions_std: float = 0.01  # that of position embeddings

    @property
    def max_context(self) -> int | None:
        """The rows of the position table."""
        return self.context

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Causal, by the windows."""
        return tuple(Causal(window=window) for window in self.windows)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: GPT2, mask: Mask):
        init = normal(size.init_std)
        # "scale the weights of residual layers at initialization by 1/sqrt(N)", N residual layers
        out_init = normal(size.init_std / math.sqrt(2 * size.layers))
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
    """Token and position embeddings, blocks, norm, and the token embedding again."""

    def __init__(
        self, rngs: nnx.Rngs, size: GPT2, compute: Compute, block: Callable[..., nnx.Module] = Block
    ):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(size.init_std), multiple=size.vocab_multiple
        )
        self.positions = Learned(rngs, size.context, size.d_model, init=normal(size.positions_std))
        kinds = [partial(block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E plus rows of P."""
        e_BTD = self.embedding(tokens_BT, self.compute.jnp_dtype)
        return self.positions(e_BTD, positions_BT)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
