"""GPT-NeoX (Black et al., arXiv 2204.06745, section 2)."""

import math
from functools import partial

import jax
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.activations import Gelu, TanhGelu
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.init import normal
from pretrain.models.layers import (
    MLP,
    SHARED,
    Affine,
    AffineLayerNorm,
    Embedding,
    Head,
    Unembedding,
)
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Stack
from pretrain.sharding import lay


class GPTNeoX(Decoder):
    """Parallel blocks with a norm for each branch, rotary positions in part, biases, untied head."""

    norm_eps: float = 1e-5  # added to the variance in every norm
    activation: Gelu = TanhGelu()  # between the feed-forward's matrices; Pythia's is the exact one
    rope: Rope = Rope(dims=24)  # rotary positions, on a quarter of each head

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)


def small(size: GPTNeoX) -> float:
    """sqrt(2 / 5D), of Nguyen & Salazar (arXiv 1910.05895)."""
    return math.sqrt(2 / (5 * size.d_model))


class Block(nnx.Module):
    """y = x + Attention(LayerNorm1(x)) + MLP(LayerNorm2(x))."""

    def __init__(self, rngs: nnx.Rngs, size: GPTNeoX, mask: Mask):
        # 2 / (L sqrt(D)) on the way out: Wang & Komatsuzaki's, section 2.1.4 of the paper
        init, out_init = normal(small(size)), normal(2 / (size.layers * math.sqrt(size.d_model)))
        self.attention_norm = AffineLayerNorm(rngs, size.d_model, size.norm_eps)
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=out_init, linear=Affine,
        )  # fmt: skip
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model, size.norm_eps)
        self.mlp = MLP(
            rngs, size.d_model, size.d_ff, act=size.activation, init=init, out_init=out_init,
            linear=Affine,
        )  # fmt: skip

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        return x_BTD + a_BTD + self.mlp(lay(self.mlp_norm(x_BTD), SHARED))


class LM(LanguageModel):
    """Embedding, blocks, norm, head."""

    def __init__(self, rngs: nnx.Rngs, size: GPTNeoX, compute: Compute):
        init, multiple = normal(small(size)), size.vocab_multiple
        self.embedding = Embedding(rngs, size.vocab, size.d_model, init=init, multiple=multiple)
        kinds = [partial(Block, size=size, mask=mask) for mask in size.masks]
        self.stack = Stack(rngs, size.layers, *kinds)
        self.norm = AffineLayerNorm(rngs, size.d_model, size.norm_eps)
        self.unembedding = Unembedding(rngs, size.vocab, size.d_model, init=init, multiple=multiple)
        self.size, self.compute = size, compute

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Rows of E."""
        return self.embedding(tokens_BT, self.compute.jnp_dtype)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x W."""
        return self.unembedding.head(self.compute.jnp_dtype)
