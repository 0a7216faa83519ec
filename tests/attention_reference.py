"""Attention and its gradients in float64 numpy, row by row; how tests run a kernel on a mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain import sharding
from pretrain.kernels.attention import Attention
from pretrain.kernels.mask import Alibi, Causal, Mask
from pretrain.sharding import Mesh, Rules, lay

B, T, N, H = 4, 16, 4, 4
# Documents of many lengths, ids out of order and used again: only equality counts.
SEGMENTS = np.repeat([[0, 0, 1, 2], [7, 3, 3, 3], [5, 5, 5, 5], [0, 1, 0, 1]], 4, axis=1)
SEGMENTS[0, 1] = 9
ONE = (("fsdp", 1),)
RULES = Rules()
# fp32: exact to rounding of sums of at most 16 terms of size about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}

Arrays = tuple[np.ndarray, ...]


@functools.cache
def inputs(K: int) -> Arrays:
    """q, k, v and the gradient of the output."""
    draw = np.random.default_rng(K).normal
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    return tuple(draw(size=shape).astype(np.float32) for shape in shapes)


@functools.cache
def expected(
    K: int, window: int | None, segmented: bool, slopes: tuple[float, ...] = (0.0,) * N
) -> Arrays:
    """a, dq, dk, dv by a loop over batch, head and query."""
    q, k, v, da = (x.astype(np.float64) for x in inputs(K))
    a, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, n, i in np.ndindex(B, N, T):
        h = n * K // N
        first = 0 if window is None else max(0, i - window + 1)
        same = [j for j in range(first, i + 1) if not segmented or SEGMENTS[b, j] == SEGMENTS[b, i]]
        s = k[b, same, h] @ q[b, i, n] / math.sqrt(H) + slopes[n] * (np.array(same) - i)
        p = np.exp(s) / np.exp(s).sum()
        a[b, i, n] = p @ v[b, same, h]
        dp = v[b, same, h] @ da[b, i, n]
        ds = p * (dp - p @ dp) / math.sqrt(H)
        dq[b, i, n] = ds @ k[b, same, h]
        dk[b, same, h] += np.outer(ds, q[b, i, n])
        dv[b, same, h] += np.outer(p, da[b, i, n])
    return a, dq, dk, dv


def build(axes: tuple[tuple[str, int], ...]) -> jax.sharding.Mesh:
    """A mesh over the first devices, from (axis, size) pairs."""
    devices = jax.devices()[: math.prod(size for _, size in axes)]
    return Mesh(**{"fsdp": 1, **dict(axes)}).build(devices)


@functools.cache
def compiled(kernel: Attention, K: int, mask: Mask, segmented: bool, rules: Rules) -> Any:
    """A jitted (q, k, v, da, segments) -> (a, dq, dk, dv), laid out as a model does it."""
    keys = "batch seq kv_heads head_dim" if K > 1 else "batch seq - head_dim"

    def run(q: Any, k: Any, v: Any, da: Any, segments: Any) -> Any:
        q, da = (lay(x, "batch seq heads head_dim") for x in (q, da))
        k, v = lay(k, keys), lay(v, keys)
        ids = lay(segments, "batch seq") if segmented else None
        a, back = jax.vjp(lambda *x: kernel(*x, ids, mask), q, k, v)
        assert jax.typeof(a).sharding == jax.typeof(q).sharding
        return a, *back(da)

    return jax.jit(run)


def computed(
    kernel: Attention,
    axes: tuple[tuple[str, int], ...] = ONE,
    *,
    K: int,
    window: int | None = None,
    segmented: bool = False,
    slopes: tuple[float, ...] = (),
    rules: Rules = RULES,
    arguments: tuple[Any, ...] | None = None,
) -> Arrays:
    """a, dq, dk, dv of a kernel on a mesh."""
    mask = Alibi(window=window, slopes=slopes) if slopes else Causal(window=window)
    with sharding.use(build(axes), rules):
        run = compiled(kernel, K, mask, segmented, rules)
        return jax.device_get(run(*(arguments or inputs(K)), jnp.asarray(SEGMENTS, jnp.int32)))


def assert_close(got: Arrays, want: Arrays, **tolerance: float) -> None:
    for name, x, y in zip(("a", "dq", "dk", "dv"), got, want, strict=True):
        np.testing.assert_allclose(x, y, err_msg=name, **(tolerance or TOLERANCE))
