"""What the tests of the core share: tiny models, one packed batch, meshes, one step taken apart."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pretrain.data import Bytes, Data, StandardLibrary
from pretrain.models.gpt2 import GPT2
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute, Decoder
from pretrain.models.palm import PaLM
from pretrain.objectives import NextToken
from pretrain.optim import Optimizer
from pretrain.program import Program
from pretrain.run import Run
from pretrain.schedules import Constant, Schedule
from pretrain.sharding import Mesh, Rules, use
from pretrain.tensors import named

B, T, V = 8, 16, 60
# N H is not D, and V is padded to 64, so that no two sizes can stand in for one another.
SIZES = {"vocab": V, "vocab_multiple": 8, "layers": 2, "d_model": 32, "head_dim": 8, "d_ff": 48}
PALM = PaLM(**SIZES, heads=8)
LLAMA = LLaMA(**SIZES, heads=8, kv_heads=2)
GPT2_ = GPT2(**SIZES, heads=4, context=20)
FAMILIES = {"palm": PALM, "llama": LLAMA, "gpt2": GPT2_}
FP32 = Compute(dtype="float32")
RULES = Rules()
Axes = tuple[tuple[str, int], ...]
ONE: Axes = ()

# These programs run once, on numbers of a few kilobytes: compiling them well would be all the time.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


class Keep(Optimizer):
    """Moves nothing and keeps the gradients that it was given as its state."""

    peak_lr: float = 1.0
    schedule: Schedule = Constant()
    clip_norm: float | None = None

    def build(self, dims: Any) -> optax.GradientTransformationExtraArgs:
        def init(params: Any) -> Any:
            return jax.tree.map(jnp.zeros_like, params)

        def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
            return jax.tree.map(jnp.zeros_like, grads), grads

        return optax.GradientTransformationExtraArgs(init, update)


def run(model: Decoder, **fields: Any) -> Run:
    """A run of the tiny sizes in fp32, with z-loss, whose optimizer keeps the gradients."""
    data = Data(source=StandardLibrary(), tokenizer=Bytes())
    given = {"optim": Keep(), "compute": FP32, "objective": NextToken(z_loss=0.01)} | fields
    return Run(model=model, data=data, steps=100, batch=B, seq_len=T, **given)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Packed documents of many lengths; some tokens are not to be predicted."""
    draw = np.random.default_rng(0)
    starts_BT = draw.random((B, T)) < 0.2
    starts_BT[:, 0] = True
    where_T = np.arange(T)
    first_BT = np.maximum.accumulate(np.where(starts_BT, where_T, 0), axis=1)
    return {
        "tokens_BT": draw.integers(V, size=(B, T), dtype=np.int32),
        "targets_BT": draw.integers(V, size=(B, T), dtype=np.int32),
        "weights_BT": (draw.random((B, T)) < 0.8).astype(np.float32),
        "segments_BT": np.cumsum(starts_BT, axis=1, dtype=np.int32),
        "positions_BT": (where_T - first_BT).astype(np.int32),
    }


@contextlib.contextmanager
def on(axes: Axes = ONE, rules: Rules = RULES) -> Iterator[jax.sharding.Mesh]:
    """A mesh of the first devices, in use."""
    devices = jax.devices()[: math.prod(size for _, size in axes)]
    mesh = Mesh(**{"fsdp": 1, **dict(axes)}).build(devices)
    with use(mesh, rules):
        yield mesh


def quick(jitted: Any, *arguments: Any) -> Callable[..., Any]:
    """A jitted function compiled for these arguments, or their shapes, without optimisation."""
    return jitted.lower(*arguments).compile(compiler_options=QUICK)


def put(arrays: dict[str, np.ndarray], program: Program) -> dict[str, jax.Array]:
    """A batch on the devices."""
    return jax.device_put(arrays, program.batch_sharding)


@dataclass(frozen=True)
class Step:
    """One step from the initial state, on the host: tensors by name."""

    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]


@functools.cache
def first_step(run: Run, axes: Axes = ONE, masked: bool = True) -> Step:
    """Initialise on a mesh and take a step on `batch()`, with its documents masked or not."""
    with on(axes, run.rules) as mesh:
        run.check()
        run.check_layout(mesh.shape)
        program = Program(run, mesh)
        state = quick(program.initialise)()
        params = named(jax.device_get(state.params))
        held = program.batch(B, T, masked)
        step = quick(program.train_step, program.state, held)
        state, metrics = step(state, put({name: batch()[name] for name in held}, program))
        return Step(params, named(jax.device_get(state.optimizer)), jax.device_get(metrics))


def norm(tensors: dict[str, np.ndarray]) -> float:
    """Over all of them."""
    return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors.values()))


def assert_equal(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """To the bit, also where they are not numbers."""
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name


def assert_close(got: Step, want: Step, loss: float = 1e-5, grads: float = 1e-6) -> None:
    """Loss and z-loss relative; every tensor's gradient relative to the norm of all."""
    for name in ("loss", "z_loss", "tokens"):
        np.testing.assert_allclose(got.metrics[name], want.metrics[name], rtol=loss, err_msg=name)
    assert got.grads.keys() == want.grads.keys()
    assert norm(want.grads) > 0.1
    for name, g in want.grads.items():
        assert norm({name: got.grads[name] - g}) <= grads * norm(want.grads), name
