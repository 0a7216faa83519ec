"""What a model is to the rest of the house: a config node, and the language model that it builds."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.config import Node
from pretrain.kernels.attention import Attention, Plain
from pretrain.kernels.drop import Noise
from pretrain.kernels.mask import Causal, Mask
from pretrain.models.attention import Context, Whole
from pretrain.models.cache import Cache, Keys
from pretrain.models.dropout import Dropout, Drops
from pretrain.models.layers import INSIDE, Head
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
    norm: Callable[[jax.Array], jax.Array]
    dropout: Dropout = Dropout()

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
        noise_B: Noise | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D], normalised.

        Positions default to 0 ... T-1; tokens attend within equal segments, everywhere without.
        Nothing is dropped without noise.
        """
        where_BT = positions(tokens_BT) if positions_BT is None else positions_BT
        drops = Drops(self.dropout, noise_B)
        whole = Whole(self.compute.attention, segments_BT, drops)
        context = Context(self.rotation(where_BT), whole, whole.recur, drops)
        x_BTD = drops.embedding(self.embed(tokens_BT, where_BT))
        x_BTD = self.stack(x_BTD, context, self.compute.remat)
        return lay(self.norm(x_BTD), INSIDE)

    def extend(self, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states [B, T, D] of tokens that continue each row of the cache, and the longer cache."""
        where_BT = cache.positions(tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT, where_BT)
        x_BTD, cache = self.stack.extend(x_BTD, self.rotation(where_BT), cache)
        return lay(self.norm(x_BTD), INSIDE), cache


class Architecture(Node):
    """Base of all families: the sizes that every one of them has."""

    vocab: int  # token ids
    layers: int  # blocks
    d_model: int  # features of the residual stream
    d_ff: int  # features inside the feed-forward
    vocab_multiple: int = 1  # rows of the token table are padded to a multiple of it

    @property
    def max_context(self) -> int | None:
        """The longest sequence that has positions, None where any length has."""
        return None

    @property
    def dropout(self) -> Dropout:
        """What training drops; a family that publishes with dropout has a field of this name."""
        return Dropout()

    def check(self) -> None:
        """Raise Mistake for a field that cannot be, whatever the run."""
        self.dropout.check()

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields that are counts, each 1 or more."""
        return ("vocab", "layers", "d_model", "d_ff", "vocab_multiple")

    @property
    def split(self) -> tuple[tuple[str, int, str], ...]:
        """What a mesh splits: field, size, and the row of the rules that says how."""
        d_model = self.d_model
        return (
            ("d_ff", self.d_ff, "mlp"),
            ("d_model", d_model, "embed"),
            ("d_model", d_model, "residual"),
        )

    @property
    def sums(self) -> int:
        """How often a block sums over `tensor` on its way forward: behind attention and feed-forward."""
        return 2

    def attention_flops(self, seq_len: int) -> int:
        """FLOPs a token, forward and backward, that multiply activations alone."""
        return 0

    def build(self, rngs: nnx.Rngs, compute: Compute) -> LanguageModel:
        """The module with freshly initialised fp32 parameters, laid out on the current mesh."""
        raise NotImplementedError

    def memory(self, rows: int, length: int, dtype: jnp.dtype) -> tuple[Any, ...]:
        """What the layers of a stack's block remember, each stacked over the stack, still empty."""
        raise NotImplementedError

    def cache(self, rows: int, length: int, compute: Compute) -> Cache:
        """An empty cache for decoding `rows` sequences of up to `length` tokens, on the current mesh."""
        first_B = jnp.zeros((rows,), jnp.int32, out_sharding=spec("batch"))
        memory = self.memory(rows, length, compute.jnp_dtype)
        return Cache(memory, jnp.zeros((), jnp.int32), first_B)


class Decoder(Architecture):
    """Base of the decoder-only transformers: what attention needs beside."""

    heads: int  # query heads
    head_dim: int  # features of a head; independent of d_model / heads

    @property
    def key_value_heads(self) -> int:
        """Key/value heads; as many as query heads unless a family says otherwise."""
        return self.heads

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Whom a token may attend to, in successive layers; they repeat as the stack's blocks do."""
        return (Causal(),)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields that are counts, each 1 or more."""
        return (*super().sizes, "heads", "key_value_heads", "head_dim")

    @property
    def split(self) -> tuple[tuple[str, int, str], ...]:
        """What a mesh splits; one key/value head is always whole."""
        K = self.key_value_heads
        shared = (("kv_heads", K, "kv_heads"),) if K > 1 else ()
        return ("heads", self.heads, "heads"), *shared, *super().split

    def attention_flops(self, seq_len: int) -> int:
        """12 L N H T: queries with keys and probabilities with values, every pair of T positions."""
        return 12 * self.layers * self.heads * self.head_dim * seq_len

    def memory(self, rows: int, length: int, dtype: jnp.dtype) -> tuple[Any, ...]:
        """Keys and values of each layer."""
        shape = self.key_value_heads, self.head_dim, dtype
        return tuple(
            Keys.empty(self.layers // len(self.masks), rows, mask.span(length), *shape)
            for mask in self.masks
        )
