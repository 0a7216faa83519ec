"""What a model is to the rest of the house: a config node, and the language model that it builds."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.config import Node
from pretrain.kernels.attention import Attention, Plain
from pretrain.kernels.mask import Causal, Mask
from pretrain.models.attention import Context, Whole
from pretrain.models.cache import Cache, Keys
from pretrain.models.layers import INSIDE, Head, LayerNorm, RMSNorm
from pretrain.models.positions import Rotation, Still, positions
from pretrain.models.stack import SAVED, Recompute, Remat, Stack
from pretrain.sharding import lay, spec


class Compute(Node):
    """How a model is computed, whichever it is; nothing here changes what it is."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # activations and matrix products
    # What is kept for the backward pass: the matrix products. Norms, activations and probabilities are
    # cheaper to compute again than to write and read.
    remat: Remat = Recompute(save=SAVED)
    attention: Attention = Plain()  # the kernel; it refuses what it cannot do

    @property
    def jnp_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(self.dtype)


class LanguageModel(nnx.Module):
    """Base of the built decoders: embedding, blocks, norm. A family adds its parameters and equations.

    The output head is apart, so that a loss may take logits in pieces:
    `model.head()(model.hidden(tokens_BT))` are the fp32 logits [B, T, V].
    """

    compute: Compute
    stack: Stack
    norm: RMSNorm | LayerNorm

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The residual stream before the first block, [B, T, D], `RESIDUAL`."""
        raise NotImplementedError

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """How queries and keys are turned; by default they are not."""
        return Still()

    def head(self) -> Head:
        """What turns hidden states into fp32 logits."""
        raise NotImplementedError

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D], normalised.

        Positions default to 0 ... T-1; tokens attend within equal segments, everywhere without.
        """
        where_BT = positions(tokens_BT) if positions_BT is None else positions_BT
        attend = Whole(self.compute.attention, segments_BT)
        x_BTD = self.embed(tokens_BT, where_BT)
        x_BTD = self.stack(x_BTD, Context(self.rotation(where_BT), attend), self.compute.remat)
        return lay(self.norm(x_BTD), INSIDE)

    def extend(self, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states [B, T, D] of tokens that continue each row of the cache, and the longer cache."""
        where_BT = cache.positions(tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT, where_BT)
        x_BTD, cache = self.stack.extend(x_BTD, self.rotation(where_BT), cache)
        return lay(self.norm(x_BTD), INSIDE), cache


class Decoder(Node):
    """Base of the decoder-only families: the sizes that all of them have."""

    vocab: int  # token ids
    layers: int  # blocks
    d_model: int  # features of the residual stream
    heads: int  # query heads
    head_dim: int  # features of a head; independent of d_model / heads
    d_ff: int  # features inside the feed-forward
    vocab_multiple: int = 1  # rows of the token table are padded to a multiple of it

    @property
    def key_value_heads(self) -> int:
        """Key/value heads; as many as query heads unless a family says otherwise."""
        return self.heads

    @property
    def max_context(self) -> int | None:
        """The longest sequence that has positions, None where any length has."""
        return None

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Whom a token may attend to, in successive layers; they repeat as the stack's blocks do."""
        return (Causal(),)

    def build(self, rngs: nnx.Rngs, compute: Compute) -> LanguageModel:
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        raise NotImplementedError

    def cache(self, rows: int, length: int, compute: Compute) -> Cache:
        """An empty cache for decoding `rows` sequences of up to `length` tokens, on the current mesh."""
        shape = self.key_value_heads, self.head_dim, compute.jnp_dtype
        layers = tuple(
            Keys.empty(self.layers // len(self.masks), rows, mask.span(length), *shape)
            for mask in self.masks
        )
        first_B = jnp.zeros((rows,), jnp.int32, out_sharding=spec("batch"))
        return Cache(layers, jnp.zeros((), jnp.int32), first_B)
