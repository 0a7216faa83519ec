"""The splash kernel, interpreted on a CPU, against the plain reference."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_reference import build
from pretrain import sharding
from pretrain.config import Mistake
from pretrain.kernels.attention import Attention, Demand, Plain
from pretrain.kernels.mask import Alibi, Causal
from pretrain.kernels.splash import Splash
from pretrain.sharding import Rules, lay

B, T, N, H = 2, 256, 4, 128
RULES, WHOLE_KV = Rules(), Rules(kv_heads=())
SLOW = pytest.mark.slow


class Interpreted(Splash):
    """Splash as it computes on a TPU, step by step on a CPU."""

    interpret: ClassVar[bool] = True


@functools.cache
def inputs(K: int) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(K).normal
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    return tuple(draw(size=shape).astype(np.float32) for shape in shapes)


SEGMENTS = np.repeat([[0, 0, 1, 2], [7, 3, 3, 3]], T // 4, axis=1).astype(np.int32)
SEGMENTS[0, 5] = 9


def computed(
    kernel: Attention, axes: Any, K: int, window: int | None, segmented: bool, rules: Rules = RULES
) -> tuple[np.ndarray, ...]:
    """a, dq, dk, dv on a mesh."""
    keys = "batch seq kv_heads head_dim" if K > 1 else "batch seq - head_dim"

    @jax.jit
    def run(q: Any, k: Any, v: Any, da: Any, segments: Any) -> Any:
        q, da = (lay(x, "batch seq heads head_dim") for x in (q, da))
        k, v = lay(k, keys), lay(v, keys)
        ids = lay(segments, "batch seq") if segmented else None
        a, back = jax.vjp(lambda *x: kernel(*x, ids, Causal(window=window)), q, k, v)
        assert jax.typeof(a).sharding == jax.typeof(q).sharding
        return a, *back(da)

    with sharding.use(build(axes), rules):
        return jax.device_get(run(*inputs(K), jnp.asarray(SEGMENTS)))


@pytest.mark.parametrize(
    ("axes", "K", "window", "segmented", "rules"),
    [
        ((), 4, None, False, RULES),
        ((), 1, None, True, RULES),
        ((("fsdp", 2), ("seq", 2), ("tensor", 2)), 2, 100, True, RULES),
        pytest.param((("seq", 2), ("tensor", 4)), 1, None, False, RULES, marks=SLOW),
        pytest.param((("fsdp", 2), ("tensor", 4)), 2, None, True, WHOLE_KV, marks=SLOW),
    ],
)
def test_splash_and_its_gradients_are_those_of_plain(axes, K, window, segmented, rules):
    """fp32, to sums of up to 256 terms of size about 1."""
    got = computed(Interpreted(block=128), axes, K, window, segmented, rules)
    want = computed(Plain(), (), K, window, segmented)
    for name, x, y in zip(("a", "dq", "dk", "dv"), got, want, strict=True):
        np.testing.assert_allclose(x, y, err_msg=name, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"platform": "cpu"}, "Splash attention does not run on cpu, only on tpu"),
        ({"dtype": jnp.float16}, "does not compute in float16"),
        ({"mask": Alibi(slopes=(1.0,) * N)}, "has no Alibi mask, only Causal"),
        ({"positions": 200}, "a device holds 200 of a sequence: make that a multiple of 128"),
        ({"positions": 384, "shards": 3, "kernel": Splash(block=64)}, "attention.block is 64"),
        ({"positions": 384, "kernel": Splash(block=256)}, "a multiple of 128 that divides 384"),
    ],
)
def test_what_splash_cannot_do_is_a_mistake_with_the_reason(change, words):
    kernel = change.pop("kernel", Splash())
    demand = {
        "positions": 256, "heads": N, "kv_heads": 2, "head_dim": H, "mask": Causal(window=9),
        "segments": True, "dtype": jnp.bfloat16, "platform": "tpu",
    }  # fmt: skip
    Splash().check(Demand(**demand))
    with pytest.raises(Mistake, match=words):
        kernel.check(Demand(**{**demand, **change}))
