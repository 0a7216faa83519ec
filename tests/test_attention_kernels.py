"""Plain and blockwise attention against numpy loops, on one device and on meshes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_reference import (
    ONE,
    SEGMENTS,
    B,
    H,
    N,
    T,
    assert_close,
    build,
    compiled,
    computed,
    expected,
    inputs,
)
from pretrain import sharding
from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, Plain
from pretrain.kernels.blockwise import Blockwise
from pretrain.kernels.mask import Alibi, Causal
from pretrain.parallel.ring import Ring
from pretrain.sharding import Rules

WHOLE_KV = Rules(kv_heads=())
DEMAND = {
    "positions": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "mask": Causal(), "segments": True,
    "dtype": jnp.bfloat16, "platform": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "K", "window", "segmented"),
    [
        (Plain(), 4, None, False),
        (Plain(parts=3), 2, 5, True),
        (Plain(), 1, 1, False),
        (Plain(parts=1), 1, T + 3, True),
        (Blockwise(block=4), 2, 5, True),
        (Blockwise(), 4, None, False),
        (Blockwise(block=2), 1, 1, False),
    ],
)
def test_a_kernel_and_its_gradients_are_those_of_the_numpy_loop(kernel, K, window, segmented):
    got = computed(kernel, K=K, window=window, segmented=segmented)
    assert_close(got, expected(K, window, segmented))


@pytest.mark.parametrize(
    ("kernel", "axes", "K", "window", "segmented", "rules"),
    [
        (Plain(), (("data", 2), ("fsdp", 2), ("tensor", 2)), 4, None, False, Rules()),
        (Plain(), (("seq", 8),), 4, 5, True, Rules()),
        (Plain(parts=1), (("seq", 2), ("tensor", 4)), 1, None, True, Rules()),
        (Plain(), (("fsdp", 2), ("seq", 2), ("tensor", 2)), 2, 5, True, Rules()),
        (Plain(), (("tensor", 4), ("seq", 2)), 2, None, False, WHOLE_KV),
        (Blockwise(block=4), (("data", 2), ("seq", 2), ("tensor", 2)), 1, 5, True, Rules()),
        (Blockwise(block=2), (("seq", 4), ("tensor", 2)), 2, None, False, Rules()),
    ],
)
def test_a_kernel_on_a_mesh_is_that_on_one_device(kernel, axes, K, window, segmented, rules):
    got = computed(kernel, axes, K=K, window=window, segmented=segmented, rules=rules)
    assert_close(got, expected(K, window, segmented))


SLOPES = (0.5, 0.25, 1.0, 0.0625)


@pytest.mark.parametrize(
    ("kernel", "axes", "K", "window"),
    [
        (Plain(), ONE, 4, None),
        (Plain(parts=3), (("seq", 2), ("tensor", 4)), 1, 5),
        (Blockwise(block=4), ONE, 2, 5),
        (Blockwise(block=4), (("seq", 2), ("tensor", 2)), 4, None),
        (Ring(block=2), (("seq", 4), ("tensor", 2)), 2, None),
        (Ring(block=2), (("seq", 4), ("tensor", 2)), 1, 6),
    ],
)
def test_slopes_lower_the_logits_of_far_keys_head_by_head(kernel, axes, K, window):
    got = computed(kernel, axes, K=K, window=window, segmented=True, slopes=SLOPES)
    assert_close(got, expected(K, window, True, SLOPES))


@pytest.mark.parametrize("kernel", [Plain(parts=3), Blockwise(block=4)])
def test_an_output_has_no_gradient_outside_its_window_and_document(kernel):
    q, k, v, da = inputs(2)
    i, window = 10, 5
    only_i = np.where(np.arange(T)[:, None, None] == i, da, np.float32(0))
    _, dq, dk, dv = computed(
        kernel, K=2, window=window, segmented=True, arguments=(q, k, v, only_i)
    )
    j = np.arange(T)
    for b in range(B):
        seen = (j <= i) & (j > i - window) & (SEGMENTS[b] == SEGMENTS[b, i])
        assert not dk[b, ~seen].any() and not dv[b, ~seen].any() and not dq[b, j != i].any()
        assert dv[b, seen].all()


@pytest.mark.parametrize("kernel", [Plain(), Blockwise(block=2)])
def test_a_query_always_sees_itself_so_no_row_is_empty(kernel):
    _, _, v, _ = inputs(1)
    a = computed(kernel, K=1, window=1)[0]
    np.testing.assert_array_equal(a, np.broadcast_to(v, a.shape))
    for window in (None, 1, 3, 99):
        i = jnp.arange(T)
        assert Causal(window=window).allowed(i, i).all()


@pytest.mark.parametrize("window", [None, 1, 2, 5, 40])
def test_a_mask_reaches_a_block_exactly_where_it_allows_a_pair(window):
    mask, at = Causal(window=window), np.arange(12)
    allowed = np.asarray(mask.allowed(at[:, None], at[None]))
    runs = [(i, j) for i, j in itertools.product(range(12), repeat=2) if i <= j]
    for (i0, i1), (j0, j1) in itertools.product(runs[::3], runs[::2]):
        assert mask.reaches(i0, i1, j0, j1) == allowed[i0 : i1 + 1, j0 : j1 + 1].any()


@pytest.mark.parametrize("kernel", [Plain(), Blockwise(block=8)])
def test_bfloat16_comes_back_as_bfloat16_and_close(kernel):
    """Within 2^-8 of values of size 1, a few roundings of inputs, weights and output."""
    arguments = tuple(jnp.asarray(x, jnp.bfloat16) for x in inputs(2))
    got = computed(kernel, K=2, window=5, segmented=True, arguments=arguments)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    want = expected(2, 5, True)
    assert_close(tuple(x.astype(np.float64) for x in got), want, rtol=0.04, atol=0.06)


def test_softmax_is_in_fp32_even_for_bfloat16():
    """A sum of 512 ones stops at 256 in bfloat16, and the output would be 2."""
    shape = (1, 512, 1, 4)
    q, v = jnp.zeros(shape, jnp.bfloat16), jnp.ones(shape, jnp.bfloat16)
    with sharding.use(build(ONE), Rules()):
        for kernel in (Plain(), Blockwise(block=64)):
            a = jax.jit(kernel, static_argnums=4)(q, q, v, None, Causal())
            np.testing.assert_allclose(a.astype(np.float32), 1, rtol=2**-8)


def test_blockwise_needs_less_memory_than_plain():
    def temporaries(kernel: Attention) -> int:
        x = jax.ShapeDtypeStruct((1, 1024, 2, H), jnp.float32)
        with sharding.use(build(ONE), Rules()):
            ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
            run = compiled(kernel, 2, Causal(), False, Rules())
            return run.lower(x, x, x, x, ids).compile().memory_analysis().temp_size_in_bytes

    assert 4 * temporaries(Blockwise(block=128)) < temporaries(Plain())


def test_queries_and_keys_of_different_positions_are_refused():
    q = jnp.zeros((1, 4, N, H))
    for kernel in (Plain(), Blockwise()):
        with pytest.raises(ValueError, match="not of the same positions"):
            kernel(q, q[:, :2], q[:, :2], None, Causal())


def test_key_value_heads_split_otherwise_than_query_heads_are_refused():
    with pytest.raises(Mistake, match=r"rules.kv_heads must be what rules.heads is"):
        computed(Plain(), (("tensor", 2),), K=2, rules=Rules(heads=()))


class Slanted(Causal):
    """A mask that no kernel knows, as one with a bias would be."""


@pytest.mark.parametrize("kernel", [Plain(), Blockwise(block=4)])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": Causal(window=0)}, "mask.window is 0"),
        ({"mask": Slanted()}, "has no Slanted mask, only Causal"),
        ({"mask": Alibi(slopes=(0.5,))}, "1 slopes for 4 query heads"),
        ({"kv_heads": 3}, "4 query heads cannot share 3"),
        ({"dtype": jnp.int8}, "does not compute in int8"),
        ({"platform": "abacus"}, "does not run on abacus"),
        ({"shards": 3}, "16 positions do not divide over the 3 devices"),
    ],
)
def test_what_a_kernel_cannot_do_is_a_mistake_with_the_reason(kernel, change, words):
    kernel.check(Demand(**DEMAND))
    with pytest.raises(Mistake, match=words):
        kernel.check(Demand(**{**DEMAND, **change}))


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (Plain(parts=0), "attention.parts is 0"),
        (Blockwise(block=0), "attention.block is 0"),
        (Blockwise(block=5), "attention.block is 5 and a device holds 16 positions"),
    ],
)
def test_a_kernel_with_senseless_fields_is_a_mistake(kernel, words):
    with pytest.raises(Mistake, match=words):
        kernel.check(Demand(**DEMAND))
