"""Products of activations and parameters: layouts, gradients, and sums that are left to be added."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from pretrain.models.layers import INSIDE, PARTS, RESIDUAL, SHARED, along
from pretrain.products import einsum
from pretrain.sharding import Rules, lay, spec
from tiny import Axes, on

MIXED: Axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))
RESIDUALS = {
    "whole": Rules(),
    "features": Rules(residual=("tensor",)),
    "positions": Rules(residual_seq=("seq", "tensor")),
    "heads whole": Rules(heads=(), residual=("tensor",)),
    "feed-forward whole": Rules(mlp=(), residual=("tensor",)),
}


def test_a_product_and_its_gradients_lie_as_asked_and_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0).normal
    x, w, dy = (draw(size=s).astype(np.float32) for s in ((4, 2, 6), (6, 8), (4, 2, 8)))

    def product(x: Any, w: Any, dy: Any) -> Any:
        x, w = lay(x, "batch seq -"), lay(w, "embed -> mlp")
        y, back = jax.vjp(lambda x, w: einsum("BTD,DF->BTF", x, w, "batch seq mlp"), x, w)
        return y, *back(lay(dy, "batch seq mlp"))

    with on(MIXED):
        y, dx, dw = jax.jit(product)(x, w, dy)
    assert y.sharding.spec == P(("fsdp",), ("seq",), ("tensor",))
    assert dw.sharding.spec == P(("fsdp",), ("tensor",))
    np.testing.assert_allclose(y, x @ w, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ w.T, atol=1e-5)
    np.testing.assert_allclose(dw, np.einsum("btd,btf->df", x, dy), atol=1e-5)


def test_bfloat16_products_have_float32_gradients_for_their_float32_parameters() -> None:
    x, w = jnp.ones((8, 2, 4), jnp.bfloat16), jnp.full((4, 6), 1 / 3)
    with on():
        y = einsum("BTD,DF->BTF", x, w, "batch seq mlp")
        dw = jax.grad(lambda w: jnp.sum(einsum("BTD,DF->BTF", x, w, "batch seq mlp")))(w)
    assert y.dtype == jnp.bfloat16 and dw.dtype == jnp.float32


# --- sums that are left to be added -----------------------------------------------------------------


def parallel(x: Any, one: Any, many: Any, up: Any, down: Any) -> Any:
    """A parallel block in miniature: a product that all need, one split by heads, one by features."""
    x, one = lay(x, RESIDUAL), lay(one, "embed -> head_dim")
    many, up, down = lay(many, "heads -> embed"), lay(up, "embed -> mlp"), lay(down, "mlp -> embed")

    def block(x: Any, one: Any, many: Any, up: Any, down: Any) -> Any:
        y = lay(x, SHARED)
        k = einsum("BTD,DH->BTH", lay(y, RESIDUAL), one, "batch residual_seq head_dim")
        q = einsum("BTD,ND->BTN", y, many, "batch seq heads")
        a = einsum("BTN,ND->BTD", q * jnp.sum(lay(k, INSIDE), -1, keepdims=True), many, PARTS)
        u = jnp.sin(einsum("BTD,DF->BTF", y, up, "batch seq mlp"))
        return jnp.sum(jnp.square(x + lay(a + einsum("BTF,FD->BTD", u, down, PARTS), RESIDUAL)))

    return jax.value_and_grad(block, argnums=(0, 1, 2, 3, 4))(x, one, many, up, down)


@pytest.fixture(scope="module")
def factors() -> Iterator[list[np.ndarray]]:
    draw = np.random.default_rng(0).normal
    return [draw(size=s).astype(np.float32) for s in ((4, 8, 8), (8, 2), (4, 8), (8, 12), (12, 8))]


@pytest.mark.parametrize("rules", RESIDUALS.values(), ids=RESIDUALS)
def test_parts_that_are_added_late_are_what_one_device_computes(factors, rules: Rules) -> None:
    with on():
        loss, grads = jax.jit(parallel)(*factors)
    with on(MIXED, rules):  # the rules are no part of the key by which jit remembers a function
        split_loss, split_grads = jax.jit(lambda *factors: parallel(*factors))(*factors)
        assert split_grads[2].sharding.spec == spec("heads -> embed")
    np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
    for split_grad, grad in zip(split_grads, grads, strict=True):
        np.testing.assert_allclose(split_grad, grad, rtol=1e-4, atol=1e-3)


def test_what_is_alike_has_a_sum_as_its_gradient_and_a_sum_what_is_alike() -> None:
    with on(MIXED):
        x = lay(jnp.ones((4, 2, 6)), SHARED)
        w = lay(jnp.ones((6, 8)), "embed -> mlp")
        kinds: list[Any] = []

        def look(x: Any) -> Any:
            y = einsum("BTD,DF->BTF", x, w, "batch seq mlp")
            back = lay(jnp.ones((8, 6)), "mlp -> embed")
            out = einsum("BTF,FD->BTD", y, back, PARTS)
            kinds.append(jax.typeof(out).sharding.spec)
            return out

        def gradient(x: Any) -> Any:
            out, back = jax.vjp(look, x)
            (dx,) = back(jax.sharding.reshard(jnp.ones(out.shape), spec(SHARED)))
            kinds.append(jax.typeof(dx).sharding.spec)
            return lay(dx, INSIDE)

        dx = jax.jit(gradient)(x)
    parts = P(("fsdp",), ("seq",), None, unreduced={"tensor"})
    assert kinds == [parts, parts]
    np.testing.assert_array_equal(dx, np.full((4, 2, 6), 48.0))


def test_parts_are_not_taken_for_the_sum() -> None:
    with on(MIXED):
        u, down = lay(jnp.ones((4, 2, 8)), "batch seq mlp"), lay(jnp.ones((8, 6)), "mlp -> embed")
        whole = lay(jnp.ones((4, 2, 6)), INSIDE)
        with pytest.raises(Exception, match="unreduced"):
            jax.eval_shape(lambda u: einsum("BTF,FD->BTD", u, down, PARTS) + whole, u)


def test_the_gradient_of_a_weight_is_gathered_and_not_its_factor() -> None:
    """One key head of a residual stream that is split along its features: D is split and w is not."""
    B, T, D, H = 4, 8, 64, 2
    x, w = np.ones((B, T, D), np.float32), np.ones((D, H), np.float32)

    def loss(x: Any, w: Any) -> Any:
        return jnp.sum(einsum("BTD,DH->BTH", x, w, "batch seq head_dim") ** 2)

    with on((("fsdp", 2), ("tensor", 4)), Rules(residual=("tensor",))):
        x, w = lay(x, RESIDUAL), lay(w, "embed -> head_dim")
        text = jax.jit(jax.grad(loss, argnums=1)).lower(x, w).compile().as_text()
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered and f"{B // 2},{T},{D}" not in gathered


def test_the_gradient_of_a_gain_is_summed_where_the_stream_lies() -> None:
    B, T, D = 4, 8, 64

    def loss(x: Any, gain: Any) -> Any:
        return jnp.sum(along(x, nnx.Param(gain), jnp.multiply) ** 2)

    with on((("fsdp", 2), ("tensor", 4)), Rules(residual=("tensor",))):
        x, gain = lay(np.ones((B, T, D), np.float32), RESIDUAL), np.ones(D, np.float32)
        compiled = jax.jit(jax.grad(loss, argnums=1)).lower(x, gain).compile()
        np.testing.assert_array_equal(compiled(x, gain), np.full(D, 2 * B * T))
    assert f"{B // 2},{T},{D}]" not in compiled.as_text()
