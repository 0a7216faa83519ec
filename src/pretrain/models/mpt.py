"""MPT (MosaicML NLP Team, "Introducing MPT-7B", 2023), as its code, llm-foundry, builds and starts it."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Alibi, Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import fan_in, normal
from pretrain.models.layers import MLP, SHARED, Embedding, Head, LayerNorm
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=False)


class MPT(Decoder):
    """Pre-LayerNorm, ALiBi, GELU, no biases at all, tied embeddings."""

    alibi_bias_max: int = 8  # the gentlest of ALiBi's slopes is 2 to minus this

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Causal, with ALiBi's slopes."""
        return (Alibi.of(self.heads, self.alibi_bias_max),)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: MPT, mask: Mask):
        # He et al.'s, arXiv 1502.01852, over sqrt(2 L) on the way out.
        init, out_init = fan_in(math.sqrt(2)), fan_in(1 / math.sqrt(size.layers))
        self.attention_norm = LayerNorm(rngs, size.d_model, eps=1e-5)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=out_init,
        )  # fmt: skip
        self.mlp_norm = LayerNorm(rngs, size.d_model, eps=1e-5)
        self.mlp = MLP(rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=out_init)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        return h_BTD + self.mlp(lay(self.mlp_norm(h_BTD), SHARED))


class LM(LanguageModel):
    """Embedding, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: MPT, compute: Compute):
        init = normal(math.sqrt(2 / size.d_model))
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=init, multiple=size.vocab_multiple
        )
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = LayerNorm(rngs, size.d_model, eps=1e-5)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
