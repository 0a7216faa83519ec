"""Every optimizer against float64 numpy written from its paper, on stacks, meshes and disk."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import sharding
from pretrain.config import Mistake
from pretrain.optim import (
    Adafactor,
    AdamW,
    Decay,
    Everything,
    Lion,
    MatricesExceptTables,
    MatricesOnly,
    Muon,
    Optimizer,
    PaLMAdafactor,
    fan,
)
from pretrain.schedules import Constant, Linear

STEPS = 10
DIMS = {
    "table": "vocab -> embed",
    "gain": "hidden",
    "wi": "embed -> mlp",
    "gains": "layers | hidden",
    "biases": "layers | heads head_dim",
    "wqs": "layers | embed -> heads head_dim",
    "wos": "layers | heads head_dim -> embed",
}
SIZES = {"layers": 2, "embed": 8, "hidden": 8, "heads": 4, "head_dim": 4, "mlp": 16}
SIZES["vocab"] = 24

# What `optim` reads from the dims, spelt out by hand.
MATRICES = {"table", "wi", "wqs", "wos"}
STACKS = {"gains", "biases", "wqs", "wos"}
FAN_IN = {"table": 24, "wi": 8, "wqs": 8, "wos": 16}
DECAYED = {
    MatricesOnly: MATRICES,
    MatricesExceptTables: MATRICES - {"table"},
    Everything: set(DIMS),
}

# Large learning rates, so that ten steps stand out from fp32 rounding of the parameters.
OPTIMIZERS = {
    "adamw": AdamW(peak_lr=3e-2, schedule=Constant(), eps=1e-4),
    "lion": Lion(peak_lr=1e-2, schedule=Constant()),
    "muon": Muon(peak_lr=3e-2, schedule=Constant(), eps=1e-4),
    "muon-jordan": Muon(
        peak_lr=3e-2, schedule=Constant(), consistent_rms=None, adamw_scale=0.3, decay=Everything()
    ),
    "adafactor": Adafactor(
        peak_lr=0.1, weight_decay=0.1, clip_update=0.5, decay=MatricesExceptTables()
    ),
    "palm": PaLMAdafactor(peak_lr=0.1),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
one_of_each_class = pytest.mark.parametrize(
    "optimizer", {type(o): o for o in OPTIMIZERS.values()}.values(), ids=lambda o: type(o).__name__
)

Tree = dict[str, Any]
Step = Callable[[Tree, Any, Tree, jax.Array], tuple[Tree, Any]]


def draw(seed: int, std: float) -> Tree:
    """A tree of normal numbers; tensors and layers differ in size, so that their scales matter."""
    rng = np.random.default_rng(seed)

    def tensor(dims: str) -> np.ndarray:
        shape = tuple(SIZES[name] for name in sharding.names(dims))
        sizes = rng.uniform(0.2, 5, size=(shape[0], *(1 for _ in shape[1:])))
        return (rng.normal(size=shape) * std * sizes).astype(np.float32)

    return {name: tensor(dims) for name, dims in DIMS.items()}


PARAMS = draw(0, 0.1) | {"biases": np.zeros((2, 4, 4), np.float32)}
GRADS = [draw(step + 1, 1e-3) for step in range(STEPS)]
FRACTIONS = [0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]  # of the peak


def stepper(tx: optax.GradientTransformationExtraArgs) -> Step:
    def step(params: Tree, state: Any, grads: Tree, lr: jax.Array) -> tuple[Tree, Any]:
        updates, state = tx.update(grads, state, params, learning_rate=lr)
        return jax.tree.map(jnp.add, params, updates), state

    return step


@functools.cache
def compiled(optimizer: Optimizer) -> tuple[Callable[[Tree], Any], Step]:
    """The optimizer's first state and its step, on one device."""
    tx = optimizer.build(DIMS)
    return jax.jit(tx.init), jax.jit(stepper(tx))


def rates(optimizer: Optimizer) -> list[jax.Array]:
    return [jnp.float32(optimizer.peak_lr * fraction) for fraction in FRACTIONS]


@functools.cache
def trained(optimizer: Optimizer) -> Tree:
    init, step = compiled(optimizer)
    params, state = PARAMS, init(PARAMS)
    for grads, lr in zip(GRADS, rates(optimizer), strict=True):
        params, state = step(params, state, grads, lr)
    return params


# The papers: for one vector or matrix in float64, a function from (p, g, lr) to the next p.


def adamw(o: Any, name: str, scale: float = 1.0) -> Callable[..., np.ndarray]:
    m = v = 0.0
    k = 0

    def step(p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, v, k
        k += 1
        m = o.b1 * m + (1 - o.b1) * g
        v = o.b2 * v + (1 - o.b2) * g**2
        u = (m / (1 - o.b1**k)) / (np.sqrt(v / (1 - o.b2**k)) + o.eps)
        wd = o.weight_decay if name in DECAYED[type(o.decay)] else 0
        return p - scale * lr * (u + wd * p)

    return step


def lion(o: Any, name: str) -> Callable[..., np.ndarray]:
    m = 0.0

    def step(p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m
        c = o.b1 * m + (1 - o.b1) * g
        m = o.b2 * m + (1 - o.b2) * g
        wd = o.weight_decay if name in DECAYED[type(o.decay)] else 0
        return p - lr * (np.sign(c) + wd * p)

    return step


def newton_schulz(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(o: Any, name: str) -> Callable[..., np.ndarray]:
    if name not in MATRICES - {"table"}:
        return adamw(o, name, o.adamw_scale)
    m = 0.0
    k = 0

    def step(p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, k
        k += 1
        m = o.beta * m + (1 - o.beta) * g
        n = o.beta * m / (1 - o.beta ** (k + 1)) + (1 - o.beta) * g / (1 - o.beta**k)
        rows, columns = p.shape
        jordan = math.sqrt(max(1, columns / rows))
        wd = o.weight_decay if name in DECAYED[type(o.decay)] else 0
        scale = jordan if o.consistent_rms is None else 0.2 * math.sqrt(max(rows, columns))
        return p - lr * (scale * newton_schulz(n) + wd * p)

    return step


def rms(x: np.ndarray) -> float:
    return math.sqrt(np.mean(x**2))


def adafactor(o: Any, name: str) -> Callable[..., np.ndarray]:
    r = c = v = 0.0
    k = 0

    def step(p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal r, c, v, k
        k += 1
        b2 = 1 - k**-0.8
        squared = g**2 + 1e-30
        if name in MATRICES:
            r = b2 * r + (1 - b2) * squared @ np.ones(g.shape[1])
            c = b2 * c + (1 - b2) * np.ones(g.shape[0]) @ squared
            estimate = np.outer(r, c) / r.sum()
        else:
            estimate = v = b2 * v + (1 - b2) * squared
        u = g / np.sqrt(estimate)
        u = u / max(1, rms(u) / o.clip_update)
        wd = o.weight_decay if name in DECAYED[type(o.decay)] else 0
        return p - lr * (max(1e-3, rms(p)) * u + wd * p)

    return step


def palm(o: Any, name: str) -> Callable[..., np.ndarray]:
    m = v = 0.0
    k = 0

    def step(p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        nonlocal m, v, k
        k += 1
        b2 = 1 - k**-0.8
        v = b2 * v + (1 - b2) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u = u / max(1, rms(u))
        m = 0.9 * m + 0.1 * lr * max(1e-3, rms(p)) * u
        return p - m - lr**2 * p

    return step


PAPERS = {AdamW: adamw, Lion: lion, Muon: muon, Adafactor: adafactor, PaLMAdafactor: palm}


def by_hand(optimizer: Optimizer, name: str) -> np.ndarray:
    """Where a tensor is after all steps: layer by layer, matrices as fan-in x fan-out."""

    def one(p: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
        flat = (FAN_IN[name], -1) if name in MATRICES else (-1,)
        end, step = p.astype(np.float64).reshape(flat), PAPERS[type(optimizer)](optimizer, name)
        for g, fraction in zip(grads, FRACTIONS, strict=True):
            end = step(end, g.astype(np.float64).reshape(flat), optimizer.peak_lr * fraction)
        return end.reshape(p.shape)

    grads = [g[name] for g in GRADS]
    if name not in STACKS:
        return one(PARAMS[name], grads)
    return np.stack([one(p, [g[layer] for g in grads]) for layer, p in enumerate(PARAMS[name])])


@every_optimizer
def test_ten_steps_are_those_of_the_paper_in_numpy(optimizer: Optimizer) -> None:
    got = trained(optimizer)
    for name, start in PARAMS.items():
        expected = by_hand(optimizer, name)
        # Against the way gone, not the place: a lost term of 1e-4 of the parameters would show.
        error = np.linalg.norm(got[name] - expected) / np.linalg.norm(expected - start)
        assert error < 1e-5, name


@one_of_each_class
def test_a_stack_of_two_layers_is_two_layers_apart(optimizer: Optimizer) -> None:
    def apart(tree: Tree) -> Tree:
        return {f"{name}{i}": tree[name][i] for name in ("gains", "wos") for i in range(2)}

    one = {name: dims.removeprefix("layers | ") for name, dims in DIMS.items()}
    tx = optimizer.build(apart({name: [dims, dims] for name, dims in one.items()}))
    step, params, state = jax.jit(stepper(tx)), apart(PARAMS), jax.jit(tx.init)(apart(PARAMS))
    for grads, lr in zip(GRADS, rates(optimizer), strict=True):
        params, state = step(params, state, apart(grads), lr)
    for name, together in apart(trained(optimizer)).items():
        np.testing.assert_allclose(params[name], together, rtol=1e-5, atol=1e-6, err_msg=name)


def laid_out(mesh: jax.sharding.Mesh, tree: Tree) -> Tree:
    def place(x: np.ndarray, dims: str) -> jax.Array:
        return jax.device_put(x, jax.NamedSharding(mesh, sharding.spec(dims)))

    return jax.tree.map(place, tree, DIMS)


@one_of_each_class
def test_a_sharded_state_through_a_checkpoint_takes_the_steps_of_one_device(
    optimizer: Optimizer, tmp_path: Path
) -> None:
    import orbax.checkpoint as ocp

    tx = optimizer.build(DIMS)

    @jax.jit
    def step(params: Tree, state: Any, grads: Tree, lr: jax.Array) -> tuple[Tree, Any]:
        specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (params, state))
        return jax.sharding.auto_axes(stepper(tx), out_sharding=specs)(params, state, grads, lr)

    mesh = sharding.Mesh(data=2, fsdp=2, tensor=2).build()
    with sharding.use(mesh, sharding.Rules()), ocp.StandardCheckpointer() as disk:
        params = laid_out(mesh, PARAMS)
        state = jax.jit(tx.init)(params)
        shapes = sharding.placed(jax.eval_shape(tx.init, params), mesh)
        for k, (grads, lr) in enumerate(zip(GRADS, rates(optimizer), strict=True)):
            if k == STEPS // 2:
                disk.save(tmp_path / "state", state)
                disk.wait_until_finished()
                restored = disk.restore(tmp_path / "state", shapes)
                jax.tree.map(np.testing.assert_array_equal, restored, state)
                state = restored
            params, state = step(params, state, laid_out(mesh, grads), lr)

    moments = [x for x in jax.tree.leaves(state) if x.size > PARAMS["gains"].size]
    assert moments and not any(x.is_fully_replicated for x in moments)
    for name, alone in trained(optimizer).items():
        np.testing.assert_allclose(params[name], alone, rtol=1e-5, atol=1e-6, err_msg=name)


@every_optimizer
def test_gradients_that_are_almost_all_zero_keep_everything_finite(optimizer: Optimizer) -> None:
    init, step = compiled(optimizer)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    # One token seen by one feature: the other rows and columns of the table never get a gradient.
    seen = zeros | {"table": np.eye(1, zeros["table"].size, dtype=np.float32).reshape(24, 8)}
    for grads in zeros, seen:
        moved = step(PARAMS, init(PARAMS), grads, jnp.float32(1.0))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(moved))


def test_adafactor_keeps_one_number_per_row_and_column_and_layer() -> None:
    means = jax.eval_shape(Adafactor().build(DIMS).init, PARAMS)[0][0].means
    shapes = jax.tree.map(lambda x: x.shape, means, is_leaf=lambda x: hasattr(x, "shape"))
    assert shapes["wqs"] == {"rows": (2, 8), "columns": (2, 4, 4)}
    assert shapes["wos"] == {"rows": (2, 4, 4), "columns": (2, 8)}
    assert shapes["table"] == {"rows": (24,), "columns": (8,)}
    assert shapes["gains"] == {"whole": (2, 8)}


def test_muon_moves_a_matrix_by_a_nearly_orthogonal_one_as_large_as_adamws() -> None:
    init, step = compiled(OPTIMIZERS["muon"])
    lr = 0.01
    ends, _ = step(PARAMS, init(PARAMS), GRADS[0], jnp.float32(lr))
    for name in ("wi", "wqs", "wos"):
        gone = (PARAMS[name] * (1 - lr * 0.1) - ends[name]) / lr  # without weight decay
        layers = gone if name in STACKS else gone[None]
        for matrix in layers.reshape(len(layers), FAN_IN[name], -1):
            scaled = matrix / (0.2 * math.sqrt(max(matrix.shape)))
            values = np.linalg.svd(scaled, compute_uv=False)
            # The iteration's coefficients trade exactness for speed: they end in a band about 1.
            assert values.min() > 0.6 and values.max() < 1.25, name
            assert rms(matrix) == pytest.approx(0.2, rel=0.3), name


def test_dims_say_fan_in_and_fan_out() -> None:
    assert fan("embed -> heads head_dim") == ((0,), (1, 2))
    assert fan("layers experts | mlp -> embed") == ((2,), (3,))
    assert fan("layers | hidden") == ((1,), ())
    assert fan("") == ((), ())


def test_masks_tell_matrices_vectors_and_tables_apart() -> None:
    dims = ["embed -> mlp", "layers | hidden", "vocab -> embed", "embed -> vocab"]
    dims.append("positions -> embed")
    applied: dict[Decay, list[bool]] = {
        MatricesOnly(): [True, False, True, True, True],
        MatricesExceptTables(): [True, False, False, False, False],
        Everything(): [True] * 5,
    }
    for decay, expected in applied.items():
        assert [decay.applies(d) for d in dims] == expected


def test_the_learning_rate_is_the_peak_times_the_schedule_in_fp32() -> None:
    optimizer = AdamW(peak_lr=4e-3, schedule=Linear(warmup=2, final=0.5))
    rates = [optimizer.learning_rate(step, 6) for step in range(6)]
    np.testing.assert_allclose(rates, [2e-3, 4e-3, 4e-3, 3.5e-3, 3e-3, 2.5e-3], rtol=1e-6)
    assert all(rate.dtype == jnp.float32 and rate.shape == () for rate in rates)


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (AdamW(peak_lr=0.0, schedule=Constant()), "peak_lr is 0"),
        (AdamW(peak_lr=1.0, schedule=Constant(), b2=1.0), "b2 is 1"),
        (AdamW(peak_lr=1.0, schedule=Constant(), weight_decay=-1.0), "weight_decay is -1"),
        (Lion(peak_lr=1.0, schedule=Constant(), clip_norm=-1.0), "clip_norm is -1"),
        (Muon(peak_lr=1.0, schedule=Constant(warmup=-1)), "warmup is -1"),
        (Muon(peak_lr=1.0, schedule=Constant(), newton_schulz_steps=0), "newton_schulz_steps is 0"),
        (Muon(peak_lr=1.0, schedule=Constant(), consistent_rms=0.0), "consistent_rms is 0"),
        (PaLMAdafactor(clip_update=0.0), "clip_update is 0"),
    ],
)
def test_a_value_out_of_range_is_named(optimizer: Optimizer, names: str) -> None:
    with pytest.raises(Mistake, match=names):
        optimizer.check(10)


def test_defaults_pass_their_checks() -> None:
    for optimizer in OPTIMIZERS.values():
        optimizer.check(10)
    AdamW(peak_lr=1e-3, schedule=Constant(), clip_norm=None).check(10)
