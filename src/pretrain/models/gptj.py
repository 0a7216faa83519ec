"""GPT-J (Wang & Komatsuzaki, "GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model", 2021).

No paper: the equations are those of the released code, mesh-transformer-jax.
"""

from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal
from pretrain.models.layers import (
    MLP,
    SHARED,
    Affine,
    AffineLayerNorm,
    AffineUnembedding,
    Embedding,
    Head,
)
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import InterleavedRope, Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay

gelu = partial(jax.nn.gelu, approximate=True)  # the released code's tanh form


class GPTJ(Decoder):
    """Parallel blocks with one norm, rotary positions in part, biases outside attention, untied head."""

    rope: Rope = InterleavedRope(dims=64)  # rotary positions, on the first features of each head

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


class Block(nnx.Module):
    """y = x + Attention(LayerNorm(x)) + MLP(LayerNorm(x)), one norm for both."""

    def __init__(self, rngs: nnx.Rngs, size: GPTJ, mask: Mask):
        init = normal(0.02)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=init,
        )  # fmt: skip
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=init, linear=Affine
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        y_BTD = lay(self.norm(x_BTD), SHARED)
        return x_BTD + self.attention(y_BTD, context) + self.mlp(y_BTD)


class LM(LanguageModel):
    """Embedding, blocks, norm, head with a bias."""

    def __init__(self, rngs: nnx.Rngs, size: GPTJ, compute: Compute):
        init, multiple = normal(0.02), size.vocab_multiple
        self.embedding = Embedding(rngs, size.vocab, size.d_model, init=init, multiple=multiple)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.unembedding = AffineUnembedding(
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
        """Logits = x W + b."""
        return self.unembedding.head(self.compute.jnp_dtype)
