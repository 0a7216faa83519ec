"""YaLM 100B (Yandex, 2022): no paper; the equations are those of the released code, yandex/YaLM-100B."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.kernels.mask import Mask
from pretrain.models.attention import Context, SelfAttention
from pretrain.models.cache import Cache, Recall
from pretrain.models.dropout import Dropout
from pretrain.models.init import normal, zeros
from pretrain.models.layers import (
    INSIDE,
    RESIDUAL,
    SHARED,
    Affine,
    AffineLayerNorm,
    Embedding,
    GatedMLP,
    Head,
)
from pretrain.models.model import Compute, Decoder, LanguageModel
from pretrain.models.positions import Rope, Rotation
from pretrain.models.stack import Remat, Stack
from pretrain.sharding import lay, param

gelu = partial(jax.nn.gelu, approximate=False)


class YaLM(Decoder):
    """Pre-LayerNorm, GEGLU, RoPE, biases everywhere; narrow embeddings, tied, the head with a bias."""

    d_embed: int  # features of an embedding
    rope: Rope = Rope()  # rotary positions
    dropout: Dropout = Dropout()  # what training drops

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields that are counts, each 1 or more."""
        return (*super().sizes, "d_embed")

    @property
    def split(self) -> tuple[tuple[str, int, str], ...]:
        """What a mesh splits."""
        E = self.d_embed
        return ("d_embed", E, "embed"), ("d_embed", E, "residual"), *super().split

    def build(self, rngs: nnx.Rngs, compute: Compute) -> "LM":
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        return LM(rngs, self, compute)

    def memory(self, rows: int, length: int, dtype: jnp.dtype) -> tuple[Any, ...]:
        """Keys and values of the first block, and of the others."""
        [keys] = super().memory(rows, length, dtype)
        return jax.tree.map(lambda x: x[:1], keys), jax.tree.map(lambda x: x[1:], keys)


class FirstBlock(nnx.Module):
    """h = x + Attention(x), whose x is normalised already, then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: YaLM, mask: Mask):
        # Megatron's, by the options of the released code
        init, out_init = normal(0.02), normal(0.02 / math.sqrt(2 * size.layers))
        self.attention = SelfAttention(
            rngs, d_model=size.d_model, heads=size.heads, kv_heads=size.heads, head_dim=size.head_dim,
            mask=mask, init=init, out_init=out_init, linear=Affine,
        )  # fmt: skip
        self.mlp_norm = AffineLayerNorm(rngs, size.d_model)
        self.mlp = GatedMLP(
            rngs, size.d_model, size.d_ff, act=gelu, init=init, out_init=out_init, linear=Affine
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        h_BTD = x_BTD + context.drop(self.attention(lay(x_BTD, SHARED), context), "attention")
        m_BTD = self.mlp(lay(self.mlp_norm(h_BTD), SHARED))
        return h_BTD + context.drop(m_BTD, "mlp")


class Block(FirstBlock):
    """h = x + Attention(LayerNorm(x)), then y = h + MLP(LayerNorm(h))."""

    def __init__(self, rngs: nnx.Rngs, size: YaLM, mask: Mask):
        super().__init__(rngs, size, mask)
        self.attention_norm = AffineLayerNorm(rngs, size.d_model)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The residual stream after this block."""
        a_BTD = self.attention(lay(self.attention_norm(x_BTD), SHARED), context)
        h_BTD = x_BTD + context.drop(a_BTD, "attention")
        m_BTD = self.mlp(lay(self.mlp_norm(h_BTD), SHARED))
        return h_BTD + context.drop(m_BTD, "mlp")


class OpenedStack(Stack):
    """A stack behind a first block of another kind."""

    def __init__(self, rngs: nnx.Rngs, size: YaLM, mask: Mask):
        self.first = FirstBlock(rngs, size, mask)
        super().__init__(rngs, size.layers - 1, partial(Block, size=size, mask=mask))

    def __call__(self, x_BTD: jax.Array, context: Context, remat: Remat) -> jax.Array:
        """The residual stream after the last block."""

        def body(x_BTD: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            block, drops = layer
            return block(x_BTD, context.dropping(drops)), None

        # For what it drops the first block is the layer behind the last: the others count from 0.
        x_BTD, _ = remat.wrap(body)(x_BTD, (self.first, context.drop.layer(self.length)))
        return super().__call__(x_BTD, context, remat)

    def extend(self, x_BTD: jax.Array, rotate: Rotation, cache: Cache) -> tuple[jax.Array, Cache]:
        """The residual stream after the last block for tokens that continue `cache`, and the longer one."""
        first, rest = cache.layers
        slots_T = cache.slots(x_BTD.shape[1])
        recall = Recall([jax.tree.map(lambda x: x[0], first)], slots_T, cache.first_B)
        x_BTD = self.first(x_BTD, Context(rotate, recall, recall.recur))
        x_BTD, cache = super().extend(x_BTD, rotate, replace(cache, layers=(rest,)))
        kept = jax.tree.map(lambda x: x[None], recall.layers)
        return x_BTD, replace(cache, layers=(*kept, *cache.layers))


class Narrowing(nnx.Module):
    """LayerNorm(GELU(LayerNorm(x) W + b)): from the residual stream back to the width of embeddings."""

    def __init__(self, rngs: nnx.Rngs, size: YaLM):
        self.norm = AffineLayerNorm(rngs, size.d_model)
        self.dense = Affine(rngs, "embed -> -", (size.d_model, size.d_embed), normal(0.02))
        self.out_norm = AffineLayerNorm(rngs, size.d_embed)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, E], `INSIDE`."""
        x_BTE = self.dense("BTD,DE->BTE", lay(self.norm(x_BTD), INSIDE), INSIDE)
        return self.out_norm(gelu(x_BTE))


class LM(LanguageModel):
    """Narrow embedding, its norm, blocks, narrowing, and the embedding again."""

    def __init__(self, rngs: nnx.Rngs, size: YaLM, compute: Compute):
        self.embedding = Embedding(
            rngs, size.vocab, size.d_embed, init=normal(0.02), multiple=size.vocab_multiple
        )
        self.embedding_norm = AffineLayerNorm(rngs, size.d_embed)
        [mask] = size.masks
        self.stack = OpenedStack(rngs, size, mask)
        self.norm = Narrowing(rngs, size)
        self.bias = param(rngs.params(), "vocab", self.embedding.table.shape[:1], zeros)
        self.size, self.compute, self.dropout = size, compute, size.dropout

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """LayerNorm of the rows of E, with zeros behind: the released projection is an identity."""
        x_BTE = self.embedding_norm(self.embedding(tokens_BT, self.compute.jnp_dtype))
        wider = self.size.d_model - self.size.d_embed
        return lay(jnp.pad(lay(x_BTE, INSIDE), ((0, 0), (0, 0), (0, wider))), RESIDUAL)

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """RoPE."""
        return self.size.rope.rotation(positions_BT, self.size.head_dim)

    def head(self) -> Head:
        """Logits = x E^T + b."""
        return replace(self.embedding.head(self.compute.jnp_dtype), bias_V=self.bias[...])
