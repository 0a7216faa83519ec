"""Layers that any family is written from: projections, norms, feed-forwards, embeddings."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from pretrain.models.init import Init, ones, zeros
from pretrain.parallel.lookup import rows
from pretrain.products import einsum, made_once
from pretrain.sharding import gathered, lay, param, spec

RESIDUAL = "batch residual_seq residual"  # how the residual stream lies between blocks
INSIDE = "batch seq -"  # how it lies inside one: whole along D, positions split over `seq` alone
# The input of several products that are split over `tensor`: its gradients by each are sums over the
# devices there, which are added to one another first and over the devices once.
SHARED = f"{INSIDE} =mlp"
PARTS = f"{INSIDE} +mlp"  # what each half of a parallel block returns, to be added likewise


class Linear(nnx.Module):
    """y = x W. `dims` reads "inputs -> outputs", as `shape` does."""

    def __init__(self, rngs: nnx.Rngs, dims: str, shape: tuple[int, ...], init: Init):
        self.kernel = param(rngs.params(), dims, shape, init)

    def __call__(self, equation: str, x: jax.Array, dims: str) -> jax.Array:
        """The product by an einsum equation, laid out as `dims`."""
        return einsum(equation, x, self.kernel, dims)


class Affine(Linear):
    """y = x W + b."""

    def __init__(self, rngs: nnx.Rngs, dims: str, shape: tuple[int, ...], init: Init):
        super().__init__(rngs, dims, shape, init)
        outputs = dims.split("->")[1].replace("embed", "hidden")
        self.bias = param(rngs.params(), outputs, shape[-len(outputs.split()) :], zeros)

    def __call__(self, equation: str, x: jax.Array, dims: str) -> jax.Array:
        """The product plus the bias of the output dims."""
        return along(super().__call__(equation, x, dims), self.bias, jnp.add)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * gain, statistics in fp32 (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, rngs: nnx.Rngs, d_model: int, eps: float = 1e-6):
        self.gain = param(rngs.params(), "hidden", (d_model,), ones)
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalised over D, in x's dtype."""
        x32 = x_BTD.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return along((x32 * scale).astype(x_BTD.dtype), self.gain, jnp.multiply)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * gain, statistics in fp32, without a bias (as PaLM's)."""

    def __init__(self, rngs: nnx.Rngs, d_model: int, eps: float = 1e-6):
        self.gain = param(rngs.params(), "hidden", (d_model,), ones)
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalised over D, in x's dtype."""
        x32 = x_BTD.astype(jnp.float32)
        x32 -= jnp.mean(x32, -1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return along((x32 * scale).astype(x_BTD.dtype), self.gain, jnp.multiply)


class AffineLayerNorm(LayerNorm):
    """LayerNorm with a bias (Ba et al., arXiv 1607.06450)."""

    def __init__(self, rngs: nnx.Rngs, d_model: int, eps: float = 1e-5):
        super().__init__(rngs, d_model, eps)
        self.bias = param(rngs.params(), "hidden", (d_model,), zeros)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalised over D, in x's dtype."""
        return along(super().__call__(x_BTD), self.bias, jnp.add)


class MLP(nnx.Module):
    """act(x W_up) W_down, with the projection class that the family uses."""

    def __init__(
        self, rngs: nnx.Rngs, d_model: int, d_ff: int, *,
        act: Callable[[jax.Array], jax.Array], init: Init, out_init: Init, linear: type[Linear] = Linear,
        out_dims: str = RESIDUAL,
    ):  # fmt: skip
        self.up = linear(rngs, "embed -> mlp", (d_model, d_ff), init)
        self.down = linear(rngs, "mlp -> embed", (d_ff, d_model), out_init)
        self.act, self.out_dims = act, out_dims

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D], `SHARED` in, `out_dims` out."""
        u_BTF = checkpoint_name(self.up("BTD,DF->BTF", x_BTD, "batch seq mlp"), "mlp_up")
        return self.down("BTF,FD->BTD", made_once(self.act(u_BTF)), self.out_dims)


class GatedMLP(nnx.Module):
    """(act(x W_gate) * x W_up) W_down: SwiGLU with `jax.nn.silu` (Shazeer, arXiv 2002.05202)."""

    def __init__(
        self, rngs: nnx.Rngs, d_model: int, d_ff: int, *,
        act: Callable[[jax.Array], jax.Array], init: Init, out_init: Init, linear: type[Linear] = Linear,
        out_dims: str = RESIDUAL,
    ):  # fmt: skip
        self.gate = linear(rngs, "embed -> mlp", (d_model, d_ff), init)
        self.up = linear(rngs, "embed -> mlp", (d_model, d_ff), init)
        self.down = linear(rngs, "mlp -> embed", (d_ff, d_model), out_init)
        self.act, self.out_dims = act, out_dims

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D], `SHARED` in, `out_dims` out."""
        g_BTF = checkpoint_name(self.gate("BTD,DF->BTF", x_BTD, "batch seq mlp"), "mlp_gate")
        u_BTF = checkpoint_name(self.up("BTD,DF->BTF", x_BTD, "batch seq mlp"), "mlp_up")
        return self.down("BTF,FD->BTD", made_once(self.act(g_BTF) * u_BTF), self.out_dims)


class Embedding(nnx.Module):
    """A table of one row per token id, padded to `multiple` rows so that any mesh divides it.

    Padding rows are never looked up, and their logits are masked, so they stay as initialised but
    for weight decay and count as no parameter.
    """

    def __init__(self, rngs: nnx.Rngs, vocab: int, d_model: int, *, init: Init, multiple: int = 1):
        padded = math.ceil(vocab / multiple) * multiple
        self.table = param(rngs.params(), "vocab -> embed", (padded, d_model), init)
        self.vocab = vocab

    def __call__(self, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Rows of the table, [B, T, D] in `dtype`, `RESIDUAL`. Ids must be below the vocabulary."""
        return lay(rows(self.table, tokens_BT, dtype), RESIDUAL)

    def head(self, dtype: jnp.dtype, scale: float = 1.0) -> "Head":
        """The output head that shares this table (Press & Wolf, arXiv 1608.05859)."""
        return Head(self.table[...], "BTD,VD->BTV", self.vocab, scale, dtype)


class Unembedding(nnx.Module):
    """An output projection of its own, padded as `Embedding` is."""

    def __init__(self, rngs: nnx.Rngs, vocab: int, d_model: int, *, init: Init, multiple: int = 1):
        columns = math.ceil(vocab / multiple) * multiple
        self.kernel = param(rngs.params(), "embed -> vocab", (d_model, columns), init)
        self.vocab = vocab

    def head(self, dtype: jnp.dtype) -> "Head":
        """The output head of this projection."""
        return Head(self.kernel[...], "BTD,DV->BTV", self.vocab, 1.0, dtype)


class AffineUnembedding(Unembedding):
    """An output projection with a bias for each token (GPT-J)."""

    def __init__(self, rngs: nnx.Rngs, vocab: int, d_model: int, *, init: Init, multiple: int = 1):
        super().__init__(rngs, vocab, d_model, init=init, multiple=multiple)
        self.bias = param(rngs.params(), "vocab", (self.kernel.shape[1],), zeros)

    def head(self, dtype: jnp.dtype) -> "Head":
        """The output head of this projection, the bias in fp32."""
        return replace(super().head(dtype), bias_V=self.bias[...])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "bias_V"],
    meta_fields=["equation", "vocab", "scale", "dtype"],
)
@dataclass(frozen=True)
class Head:
    """Hidden states to logits: parameters as they are stored and what is done with them, no module."""

    weight: jax.Array
    equation: str
    vocab: int
    scale: float
    dtype: jnp.dtype
    bias_V: jax.Array | None = None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """fp32 logits [B, T, V]; padding of the vocabulary at -1e30: no probability, no gradient."""
        return self.finished(
            jnp.einsum(
                self.equation, x_BTD, self.whole().weight,
                out_sharding=spec("batch seq vocab"), preferred_element_type=jnp.float32,
            )
        )  # fmt: skip

    def whole(self) -> "Head":
        """The weight gathered, in the dtype of activations."""
        return replace(self, weight=gathered(self.weight.astype(self.dtype)))

    def finished(self, products_BTV: jax.Array, first: jax.Array | int = 0) -> jax.Array:
        """Logits of x times the weight's rows from `first` on."""
        logits_BTV = products_BTV * self.scale
        if self.bias_V is not None:
            logits_BTV += self.bias_V[None, None]
        ids_11V = first + jnp.arange(logits_BTV.shape[-1]).reshape(1, 1, -1)
        return jnp.where(ids_11V < self.vocab, logits_BTV, -1e30)

    def laid(self, weight: PartitionSpec) -> "Head":
        """Layouts in place of arrays."""
        bias = None if self.bias_V is None else spec("vocab")
        return replace(self, weight=weight, bias_V=bias)  # type: ignore[arg-type]  # a tree of layouts

    @property
    def dims(self) -> str:
        """The logical axes of the weight."""
        weight = self.equation.split("->")[0].split(",")[1]
        return " -> ".join({"V": "vocab", "D": "embed"}[letter] for letter in weight)

    @property
    def rows(self) -> int:
        """Logits of a position, padding among them."""
        return self.weight.shape[self.dims.split(" -> ").index("vocab")]


def along(
    x: jax.Array, vector: nnx.Param, op: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """op(x, vector) in x's dtype, the vector broadcast over x's leading dims.

    Its gradient, a sum over all tokens, is added in fp32.
    """
    value, laid = gathered(vector[...]), jax.typeof(x).sharding.spec

    # Cast behind the broadcast, and so before the sum that is its transpose. What is wide is made
    # again for the gradient, not kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def applied(x: jax.Array, value: jax.Array) -> jax.Array:
        return op(x, jnp.broadcast_to(value, x.shape, out_sharding=laid).astype(x.dtype))

    return applied(x, value)
