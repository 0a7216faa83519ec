"""The loss against numpy, in pieces and in one, and the memory that the pieces save."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.cross_entropy import cross_entropy, pieces
from pretrain.models.layers import Head
from pretrain.sharding import Rules, lay
from tiny import ONE, Axes, on, quick

B, T, D, V, VOCAB = 4, 8, 6, 16, 13
EQUATION = "BTD,VD->BTV"


def drawn() -> tuple[np.ndarray, ...]:
    """x_BTD, weight_VD, targets_BT, weights_BT."""
    draw = np.random.default_rng(0)
    return (
        draw.normal(size=(B, T, D)).astype(np.float32),
        draw.normal(size=(V, D)).astype(np.float32),
        draw.integers(VOCAB, size=(B, T), dtype=np.int32),
        (draw.random((B, T)) < 0.7).astype(np.float32),
    )


def by_hand(scale: float, z_loss: float) -> tuple[np.ndarray, ...]:
    """Sums of the loss and of log(Z)^2, and the gradient of loss + z_loss log(Z)^2, in float64."""
    x_BTD, w_VD, targets_BT, weights_BT = drawn()
    x_BTD, w_VD = x_BTD.astype(np.float64), w_VD[:VOCAB].astype(np.float64)
    logits_BTV = scale * x_BTD @ w_VD.T
    z_BT = np.exp(logits_BTV).sum(-1)
    p_BTV = np.exp(logits_BTV) / z_BT[..., None]
    hit_BTV = np.eye(VOCAB)[targets_BT]
    loss = -(weights_BT * np.log((p_BTV * hit_BTV).sum(-1))).sum()
    squares = (weights_BT * np.log(z_BT) ** 2).sum()
    d_BTV = p_BTV - hit_BTV + 2 * z_loss * np.log(z_BT)[..., None] * p_BTV
    d_BTV *= scale * weights_BT[..., None]
    dw_VD = np.zeros((V, D))
    dw_VD[:VOCAB] = np.einsum("btv,btd->vd", d_BTV, x_BTD)
    return loss, squares, d_BTV @ w_VD, dw_VD


@pytest.mark.parametrize(
    ("axes", "logits_bytes"),
    [
        (ONE, 2**20),
        (ONE, 4 * B * V * 2),
        ((("data", 2), ("seq", 2), ("tensor", 2)), 2**20),
        ((("fsdp", 2), ("seq", 4)), 4 * V),
        ((("tensor", 4),), 4 * B * V // 4),
    ],
)
def test_loss_z_loss_and_gradients_are_those_of_numpy(axes: Axes, logits_bytes: int) -> None:
    z_loss, scale = 0.1, 0.5

    def total(x_BTD: Any, w_VD: Any, targets_BT: Any, weights_BT: Any) -> Any:
        head = Head(lay(w_VD, "vocab -> embed"), EQUATION, VOCAB, scale, jnp.float32)
        sums = cross_entropy(
            head, lay(x_BTD, "batch seq -"), targets_BT, weights_BT,
            z_loss=z_loss, logits_bytes=logits_bytes,
        )  # fmt: skip
        return sums.total, sums[1:]

    with on(axes):
        x_BTD, w_VD, *rest = map(jnp.asarray, drawn())
        rest = [lay(x, "batch seq") for x in rest]
        go = quick(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), x_BTD, w_VD, *rest)
        (got, (loss, squared)), (dx_BTD, dw_VD) = go(x_BTD, w_VD, *rest)
    want_loss, want_squares, want_dx, want_dw = by_hand(scale, z_loss)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    np.testing.assert_allclose(squared, z_loss * want_squares, rtol=1e-6)
    np.testing.assert_allclose(got, want_loss + z_loss * want_squares, rtol=1e-6)
    np.testing.assert_allclose(dx_BTD, want_dx, atol=1e-6)
    np.testing.assert_allclose(dw_VD, want_dw, atol=1e-5)
    assert not np.asarray(dw_VD)[VOCAB:].any()


def test_a_head_that_is_split_over_devices_with_the_same_tokens_has_the_gradient_of_numpy() -> None:
    """Only D of the head is split: every device stores a part of a gradient that it has whole."""
    with on((("tensor", 2),), Rules(vocab=(), embed=("fsdp", "tensor"))):
        x_BTD, w_VD, targets_BT, weights_BT = map(jnp.asarray, drawn())

        def total(w_VD: jax.Array) -> jax.Array:
            head = Head(lay(w_VD, "vocab -> embed"), EQUATION, VOCAB, 0.5, jnp.float32)
            return cross_entropy(
                head, x_BTD, targets_BT, weights_BT, z_loss=0.1, logits_bytes=2**20
            ).total

        np.testing.assert_allclose(jax.jit(jax.grad(total))(w_VD), by_hand(0.5, 0.1)[3], atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    """As large as fp32 holds: exp of them is no number."""
    logits_BTV = jnp.float32([[[1e4, 0.0, -1e4], [3e38, -3e38, 0.0]]])
    head = Head(jnp.eye(3), EQUATION, 3, 1.0, jnp.float32)

    def total(x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights_BT = jnp.float32([[1.0, 1.0]])
        targets_BT = jnp.int32([[1, 0]])
        sums = cross_entropy(head, x_BTD, targets_BT, weights_BT, z_loss=0.0, logits_bytes=2**20)
        return sums.total, sums.z_loss

    with on():
        (loss, z_loss), dx_BTD = jax.value_and_grad(total, has_aux=True)(logits_BTV)
    assert (loss, z_loss) == (1e4, 0)
    np.testing.assert_array_equal(dx_BTD, [[[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]])


def test_bfloat16_activations_have_a_gradient_of_the_head_that_is_added_in_float32() -> None:
    """In bfloat16 the sum of the pieces' ones would end at 256."""
    T = 1024

    def total(w_VD: jax.Array) -> jax.Array:
        head = Head(w_VD, EQUATION, 2, 1.0, jnp.bfloat16)
        x_BTD, zeros_BT = jnp.ones((1, T, 1), jnp.bfloat16), jnp.zeros((1, T), jnp.int32)
        ones_BT = jnp.ones((1, T))
        return cross_entropy(head, x_BTD, zeros_BT, ones_BT, z_loss=0.0, logits_bytes=8).total

    with on():
        dw_VD = jax.grad(total)(jnp.float32([[-1e4], [1e4]]))  # all are wrong: p is 0 and 1
    np.testing.assert_array_equal(dw_VD, [[-T], [T]])


def test_bfloat16_gradients_of_a_mean_are_not_scaled_by_a_rounded_number_of_tokens() -> None:
    """1 / 99 rounds to 1 / 99.3 in 8 bits: all gradients but the head's would lack 3 per mille."""
    x_BTD, w_VD, targets_BT, weights_BT = map(jnp.asarray, drawn())
    head = Head(w_VD, EQUATION, VOCAB, 1.0, jnp.bfloat16)

    def total(x_BTD: jax.Array, tokens: float) -> jax.Array:
        sums = cross_entropy(head, x_BTD, targets_BT, weights_BT, z_loss=0.0, logits_bytes=2**20)
        return sums.total / tokens

    with on():
        grad = jax.grad(total)
        x_BTD = x_BTD.astype(jnp.bfloat16)
        whole, mean = (np.asarray(grad(x_BTD, n), np.float64) for n in (1.0, 99.0))
    assert abs(99 * (whole * mean).sum() / (whole * whole).sum() - 1) < 1e-3


@pytest.mark.parametrize(
    ("batch", "length", "vocab", "logits_bytes", "count"),
    [
        (2, 12, 10, 4 * 2 * 12 * 10, 1),  # all fit to the byte
        (2, 12, 10, 4 * 2 * 12 * 10 - 1, 2),
        (2, 12, 10, 4 * 2 * 3 * 10, 4),
        (2, 12, 10, 4 * 2 * 12 * 10 // 5, 6),  # 5 do not divide 12 positions: 6 smaller ones
        (2, 7, 10, 4 * 2 * 7 * 10 // 2, 7),  # a prime
        (2, 12, 10, 1, 12),  # one position is too much, and as little as there is
        (1, 1, 10, 1, 1),
    ],
)
def test_pieces_are_the_fewest_equal_ones_that_fit(
    batch: int, length: int, vocab: int, logits_bytes: int, count: int
) -> None:
    assert pieces(batch, length, vocab, logits_bytes) == count


@pytest.mark.parametrize("axes", [ONE, (("data", 2), ("seq", 2))])
def test_pieces_bound_the_memory_of_loss_and_gradient(axes: Axes) -> None:
    """Whole fp32 logits are 64 MiB, of a device 16 MiB on the mesh; a piece is 1 MiB."""
    B, T, D, V = 8, 256, 8, 8192

    def temporaries(logits_bytes: int) -> int:
        def total(x_BTD: Any, w_VD: Any, targets_BT: Any, weights_BT: Any) -> jax.Array:
            head = Head(w_VD, EQUATION, V, 1.0, jnp.float32)
            return cross_entropy(
                head, x_BTD, targets_BT, weights_BT, z_loss=0.0, logits_bytes=logits_bytes
            ).total

        with on(axes):
            tokens = (jnp.zeros((B, T), dtype) for dtype in (jnp.int32, jnp.float32))
            go = quick(
                jax.value_and_grad(total, argnums=(0, 1)), lay(jnp.zeros((B, T, D)), "batch seq -"),
                jnp.zeros((V, D)), *(lay(x, "batch seq") for x in tokens),
            )  # fmt: skip
        return go.memory_analysis().temp_size_in_bytes  # type: ignore[attr-defined]

    whole, cut = temporaries(2**30), temporaries(2**20)
    device = 4 * B * T * V // (4 if axes else 1)
    assert whole >= device
    assert cut < whole / 8
