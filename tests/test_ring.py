"""Ring attention against numpy loops and plain attention, and inside a rematerialised scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_reference import (
    ONE,
    SEGMENTS,
    B,
    T,
    assert_close,
    build,
    computed,
    expected,
    inputs,
)
from pretrain import sharding
from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, Plain
from pretrain.kernels.mask import Causal
from pretrain.parallel.ring import Ring
from pretrain.sharding import Rules, lay

SEQ_4_TENSOR_2 = (("seq", 4), ("tensor", 2))


@pytest.mark.parametrize(
    ("kernel", "axes", "K", "window", "segmented", "rules"),
    [
        (Ring(), SEQ_4_TENSOR_2, 4, None, False, Rules()),
        (Ring(block=2), SEQ_4_TENSOR_2, 1, None, True, Rules()),
        (Ring(), SEQ_4_TENSOR_2, 2, 6, False, Rules()),
        (Ring(block=2), SEQ_4_TENSOR_2, 2, 5, True, Rules()),
        (Ring(), (("seq", 8),), 2, None, True, Rules()),
        (Ring(), (("seq", 8),), 4, T + 3, False, Rules()),
        (Ring(), (("seq", 2),), 1, 1, False, Rules()),
        (Ring(block=4), (("data", 2), ("seq", 4)), 1, 6, True, Rules()),
        (Ring(), (("seq", 2), ("tensor", 4)), 2, None, False, Rules(kv_heads=())),
    ],
)
def test_a_ring_and_its_gradients_are_those_of_the_numpy_loop(
    kernel, axes, K, window, segmented, rules
):
    got = computed(kernel, axes, K=K, window=window, segmented=segmented, rules=rules)
    assert_close(got, expected(K, window, segmented))


def test_a_ring_of_one_device_is_its_plain_kernel_to_the_bit():
    got, want = (computed(kernel, K=1, window=1) for kernel in (Ring(), Plain()))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_output_has_no_gradient_outside_its_window_and_document_across_devices():
    q, k, v, da = inputs(2)
    i, j = 10, np.arange(T)
    only_i = np.where(j[:, None, None] == i, da, np.float32(0))
    case = {"K": 2, "window": 5, "segmented": True, "arguments": (q, k, v, only_i)}
    _, dq, dk, dv = computed(Ring(block=2), SEQ_4_TENSOR_2, **case)
    for b in range(B):
        seen = (j <= i) & (j > i - 5) & (SEGMENTS[b] == SEGMENTS[b, i])
        assert not dk[b, ~seen].any() and not dv[b, ~seen].any() and not dq[b, j != i].any()
        assert dv[b, seen].all()


def test_bfloat16_comes_back_as_bfloat16_and_close():
    arguments = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs(2))
    case = {"K": 2, "window": 5, "segmented": True, "arguments": arguments}
    got = computed(Ring(block=2), SEQ_4_TENSOR_2, **case)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    want = expected(2, 5, True)
    assert_close(tuple(x.astype(np.float64) for x in got), want, rtol=0.04, atol=0.06)


def layers(kernel: Attention, axes: tuple[tuple[str, int], ...]) -> tuple[jax.Array, jax.Array]:
    """Loss and gradient of three rematerialised, scanned layers, each attention by a matrix."""
    dims = "batch seq heads head_dim"
    w_LHH = 0.5 * np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)

    def loss(w_LHH: jax.Array, x_BTNH: jax.Array, ids_BT: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x_BTNH: jax.Array, w_HH: jax.Array) -> tuple[jax.Array, None]:
            y = jnp.einsum("BTNH,HJ->BTNJ", x_BTNH, w_HH)
            return x_BTNH + kernel(y, y, x_BTNH, ids_BT, Causal(window=7)), None

        return jnp.sum(jax.lax.scan(layer, x_BTNH, w_LHH)[0] ** 2)

    with sharding.use(build(axes), Rules()):
        x, ids = lay(jnp.asarray(inputs(4)[0]), dims), lay(jnp.asarray(SEGMENTS), "batch seq")
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(w_LHH, x, ids))


def test_a_ring_in_a_rematerialised_scan_over_layers_is_plain_attention_in_one():
    value, grad = layers(Ring(block=2), (("fsdp", 2), ("seq", 2), ("tensor", 2)))
    want_value, want_grad = layers(Plain(), ONE)
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-6 * np.linalg.norm(want_grad))


@pytest.mark.parametrize(
    ("window", "stops"), [(None, 8), (1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (10, 4), (99, 8)]
)
def test_a_ring_goes_no_farther_than_the_window_reaches(window, stops):
    """Shards of 4: the first query of a shard sees window - 1 positions of the ones before."""
    assert Ring().stops(Causal(window=window), 4, 8) == stops


def test_a_ring_checks_its_blocks_or_the_kernel_that_it_uses_alone():
    demand = {
        "positions": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "mask": Causal(),
        "segments": True, "dtype": jnp.bfloat16, "platform": "cpu",
    }  # fmt: skip
    Ring().check(Demand(**demand, shards=4))
    with pytest.raises(Mistake, match=r"attention\.block is 3 and a device holds 4 positions"):
        Ring(block=3).check(Demand(**demand, shards=4))
    Ring(block=3).check(Demand(**demand))
    with pytest.raises(Mistake, match=r"attention\.parts is 0"):
        Ring(alone=Plain(parts=0)).check(Demand(**demand))
    assert "plain jnp" in Ring().describe() and "512" in Ring().describe()
