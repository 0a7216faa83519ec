"""Falcon (Almazrouei et al., arXiv 2311.16867, section 4), as released."""

from functools import partial
from typing import Literal

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal
from pretrain.models.layers import MLP, PARTS, RESIDUAL, SHARED, AffineLayerNorm, Embedding, Head
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=False)


class Falcon(Decoder):
    """Parallel blocks, few key/value heads, RoPE, GELU, biases in norms alone, tied embeddings."""

    kv_heads: int = 1  # key/value heads
    norms: Literal[1, 2] = 1  # norms of a block: one for both halves (7B), or one each (40B, 180B)
    rope: Rope = Rope()  # rotary positions

    @property
    def key_value_heads(self) -> int:
        """As configured."""
        return self.kv_heads

    @property
    def sums(self) -> int:
        """One, of both halves."""
        return 1

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """y = x + Attention(LayerNorm_1(x)) + MLP(LayerNorm_n(x)), where n norms are 1 or 2."""

    def __init__(self, rngs: nnx.Rngs, size: Falcon, mask: Mask):
        # The paper does not say how it initialises; N(0, 0.02^2) is its released class's default.
        init = normal(0.02)
        self.norms = nnx.List([AffineLayerNorm(rngs, size.d_model) for _ in range(size.norms)])
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.kv_heads,
            head_dim=size.head_dim, mask=mask, init=init, out_init=init, out_dims=PARTS,
        )  # fmt: skip
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=init, out_dims=PARTS
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        normed = [lay(norm(x_BTD), SHARED) for norm in self.norms]
        said_BTD = self.attention(normed[0], context) + self.mlp(normed[-1])
        return x_BTD + lay(said_BTD, RESIDUAL)


class LM(LanguageModel):
    """Embedding, blocks, norm, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: Falcon, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_model, init=normal(0.02), multiple=size.vocab_multiple
        )
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x E^T."""
        return self.embedding.head(self.compute.jnp_dtype)
