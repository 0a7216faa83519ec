"""Products of an activation and a parameter: the one place where weights are gathered and summed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.sharding import Axes, as_sum, axes_in, copied, dual, gathered, plain, spec


def einsum(equation: str, x: jax.Array, w: Any, dims: str) -> jax.Array:
    """`jnp.einsum` of an activation and a parameter, in x's dtype, laid out as `dims`.

    The weight is gathered for the product and again for its gradient, as FSDP does (Rajbhandari et al.,
    arXiv 1910.02054): what is kept for the backward pass is the parameter as it is stored. Gradients
    of parameters are summed over devices in fp32 and come out scattered as the parameters lie.
    """
    return _product(equation, spec(dims), x, w[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(equation: str, out: PartitionSpec, x: jax.Array, w: jax.Array) -> jax.Array:
    return _contracted(equation, x, gathered(w.astype(x.dtype)), out)


def _product_forward(
    equation: str, out: PartitionSpec, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(equation, out, x, w), (x, w)


def _product_backward(
    equation: str, out: PartitionSpec, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    (x, w), (inputs, y_dims) = kept, equation.split("->")
    x_dims, w_dims = inputs.split(",")
    dy = made_once(dy)
    dx = _contracted(
        f"{y_dims},{w_dims}->{x_dims}", dy, gathered(w.astype(x.dtype)),
        dual(jax.typeof(x).sharding.spec),
    )  # fmt: skip
    if not jax.typeof(dx).sharding.spec.unreduced:  # parts are added to others, which costs little
        dx = made_once(dx)
    # XLA's CPU compiler writes out the transpose of the first operand, a slow loop: so the smaller one
    # goes first, and the barrier keeps the transpose of the result from swapping the two again.
    (a, a_dims), (b, b_dims) = sorted(((x, x_dims), (dy, y_dims)), key=lambda item: item[0].size)
    kept_dims = "".join(d for d in a_dims + b_dims if d in w_dims)
    made = _made(_split(w, w_dims), _split(x, x_dims) | _split(dy, y_dims))
    dw = jnp.einsum(
        f"{a_dims},{b_dims}->{kept_dims}", copied(a), copied(b),
        out_sharding=PartitionSpec(*(made[d] for d in kept_dims)), preferred_element_type=w.dtype,
    )  # fmt: skip
    if kept_dims != w_dims:
        dw = jax.lax.optimization_barrier(dw).transpose([kept_dims.index(d) for d in w_dims])
    return dx, jax.sharding.reshard(dw, jax.typeof(w).sharding.spec)


_product.defvjp(_product_forward, _product_backward)


def made_once(x: jax.Array) -> jax.Array:
    """x itself, not fused with the products that it goes into or comes from.

    TPUs' compiler fuses a product with what makes its operand, and makes that again for each tile of
    the result; fused with what follows, a product takes longer than both do one after the other.
    """
    # XLA's unrolling of loops for GPUs fails on barriers, and fuses nothing with its products.
    return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)


def _contracted(equation: str, a: jax.Array, b: jax.Array, out: PartitionSpec) -> jax.Array:
    """An einsum, left as sums over mesh axes where `out` says so."""
    (a_dims, b_dims), y_dims = equation.split("->")[0].split(","), equation.split("->")[1]
    split = _split(a, a_dims) | _split(b, b_dims)
    summed = {axis for dim, axes in split.items() if dim not in y_dims for axis in axes}
    if out.unreduced <= summed:
        return jnp.einsum(equation, copied(a), copied(b), out_sharding=out)
    return as_sum(jnp.einsum(equation, copied(a), copied(b), out_sharding=plain(out)), out)


def _split(x: jax.Array, dims: str) -> dict[str, Axes]:
    """The mesh axes that split each dim."""
    entries = jax.typeof(x).sharding.spec.partitions
    return {dim: axes_in(entry) for dim, entry in zip(dims, entries, strict=True)}


def _made(held: dict[str, Axes], factors: dict[str, Axes]) -> dict[str, Axes]:
    """How the gradient of a weight is split as a product, by how the weight and the factors are.

    As the weight is, but for a dim that a factor splits by axes which the weight leaves free: the
    product is then gathered, where else that factor would be, which is far larger.
    """
    taken = {axis for axes in held.values() for axis in axes}
    return held | {
        dim: axes
        for dim, axes in factors.items()
        if dim in held and axes and taken.isdisjoint(axes)
    }
