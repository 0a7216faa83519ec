"""Optimizers as config nodes, and which tensors weight decay touches.

`build(dims)` gives an `optax` transformation for one tree of parameters. `dims` has the structure
of the parameters and holds their logical axes, the strings handed to `sharding.param`: inputs
before "->", outputs behind it, stacked axes (layers, experts) before "|". Every optimizer treats a
stack of L tensors exactly as L tensors, and none sees the mesh.

The learning rate is an argument of `update`, not a count in the state, so that a skipped step can
leave the state as it was. All state is arrays; moments are fp32, as parameters and gradients are.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax import GradientTransformationExtraArgs as Transformation

from pretrain.config import Mistake, Node
from pretrain.schedules import Rsqrt, Schedule

TABLES = {"vocab", "positions"}  # a matrix with one of these axes is a table of rows


def fan(dims: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axis numbers of fan-in and fan-out: "layers | embed -> heads head_dim" gives (1,), (2, 3).

    A vector has all its axes in the first and none in the second; stacked axes are in neither.
    """
    stack, _, tensor = dims.rpartition("|")
    inputs, _, outputs = tensor.partition("->")
    first = len(stack.split())
    middle = first + len(inputs.split())
    return tuple(range(first, middle)), tuple(range(middle, middle + len(outputs.split())))


def is_matrix(dims: str) -> bool:
    """Whether a tensor maps inputs to outputs; norm gains and biases do not."""
    return bool(fan(dims)[1])


def is_table(dims: str) -> bool:
    """Whether a matrix has one row or column per token or position: embeddings, output heads."""
    return is_matrix(dims) and not TABLES.isdisjoint(dims.split())


def is_inner(dims: str) -> bool:
    """Whether a tensor is a matrix between features, not a table."""
    return is_matrix(dims) and not is_table(dims)


class Decay(Node):
    """Which tensors weight decay pulls towards zero."""

    def applies(self, dims: str) -> bool:
        """Whether the tensor with these logical axes decays."""
        raise NotImplementedError


class MatricesOnly(Decay):
    """Matrices, tables among them; not norm gains and biases."""

    def applies(self, dims: str) -> bool:
        """See `Decay.applies`."""
        return is_matrix(dims)


class MatricesExceptTables(Decay):
    """Matrices between features; not embeddings and output heads (OLMo 2, arXiv 2501.00656)."""

    def applies(self, dims: str) -> bool:
        """See `Decay.applies`."""
        return is_inner(dims)


class Everything(Decay):
    """Every tensor."""

    def applies(self, dims: str) -> bool:
        """See `Decay.applies`."""
        return True


class Optimizer(Node):
    """What turns gradients into updates; the step clips gradients before and adds updates after."""

    peak_lr: float  # learning rate at the peak of the schedule
    schedule: Schedule  # learning rate over its peak, by step
    clip_norm: float | None = 1.0  # gradients are scaled down to this global norm; None never does
    decay: Decay = MatricesOnly()  # which tensors weight decay applies to

    def learning_rate(self, step: jax.typing.ArrayLike, steps: int) -> jax.Array:
        """The rate at `step` of a run of `steps`: an fp32 scalar."""
        return self.peak_lr * self.schedule.factor(step, steps)

    def build(self, dims: Any) -> Transformation:
        """The transformation for parameters with these logical axes.

        `update(grads, state, params, learning_rate=rate)` returns what is added to the parameters.
        Gradients and parameters are fp32. On a mesh it runs inside `jax.sharding.auto_axes`.
        """
        raise NotImplementedError

    def check(self, steps: int | None = None) -> None:
        """Raises Mistake where a field is out of range or unfit for a run of `steps`, if given."""
        self.schedule.check(steps)
        for name in ("peak_lr", "clip_norm", "clip_update", "consistent_rms", "adamw_scale"):
            _refuse(self, name, lambda value: value > 0, "more than 0")
        for name in ("b1", "b2", "beta", "b2_power"):
            _refuse(self, name, lambda value: 0 <= value < 1, "at least 0 and less than 1")
        _refuse(self, "weight_decay", lambda value: value >= 0, "0 (none) or more")
        _refuse(self, "newton_schulz_steps", lambda value: value >= 1, "1 or more")


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        p -= lr (m / (1 - b1^k) / (sqrt(v / (1 - b2^k)) + eps) + weight_decay p),  k = 1, 2, ...

    Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, with the decay under the whole learning
    rate, as is the custom. Defaults: GPT-3 (arXiv 2005.14165, appendix B) and LLaMA (arXiv
    2302.13971, section 2.3).
    """

    b1: float = 0.9  # decay of the mean of gradients
    b2: float = 0.95  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.1  # weight decay per unit of learning rate

    def build(self, dims: Any) -> Transformation:
        """See `Optimizer.build`."""
        adam = _promoting(optax.scale_by_adam(self.b1, self.b2, self.eps))
        return optax.chain(adam, _descend(dims, self.decay, self.weight_decay))


class Lion(Optimizer):
    """Signs of momentum.

        p -= lr (sign(b1 m + (1 - b1) g) + weight_decay p);  m = b2 m + (1 - b2) g

    Chen et al. (arXiv 2302.06675), algorithm 2, and for the defaults their advice on tuning: betas
    of 0.95 and 0.98 for language models, a learning rate 3 to 10 times below AdamW's and a weight
    decay as much above it.
    """

    b1: float = 0.95  # share of the momentum in the update
    b2: float = 0.98  # decay of the momentum
    weight_decay: float = 1.0  # weight decay per unit of learning rate

    def build(self, dims: Any) -> Transformation:
        """See `Optimizer.build`."""
        lion = optax.scale_by_lion(self.b1, self.b2)
        return optax.chain(lion, _descend(dims, self.decay, self.weight_decay))


class Muon(Optimizer):
    """Matrices along the orthogonal factor of their momentum; tables and vectors by AdamW.

        m = beta m + (1 - beta) g;  n = beta m / (1 - beta^(k+1)) + (1 - beta) g / (1 - beta^k)
        p -= lr (scale NewtonSchulz(n) + weight_decay p)

    NewtonSchulz(n) is about U V' of the singular value decomposition of n, fan-in x fan-out,
    several axes of a side taken as one. Jordan et al. (kellerjordan.github.io/posts/muon) use
    scale = sqrt(max(1, fan_out / fan_in)) and another rate for AdamW's tensors (`adamw_scale`). Liu
    et al. (arXiv 2502.16982, section 2.2) use scale = 0.2 sqrt(max(fan_in, fan_out)): updates as
    large as AdamW's, so that one rate serves all tensors. That is the default.

    The momentum is `optax.contrib.scale_by_muon`; its bias corrections are not Jordan's, and vanish
    after some tens of steps.
    """

    beta: float = 0.95  # decay of the momentum of matrices
    newton_schulz_steps: int = 5  # iterations towards the orthogonal factor
    consistent_rms: float | None = 0.2  # RMS of an update over the rate; None as Jordan et al.
    b1: float = 0.9  # AdamW: decay of the mean of gradients
    b2: float = 0.95  # AdamW: decay of the mean of squared gradients
    eps: float = 1e-8  # AdamW: added to the root of the mean square
    adamw_scale: float = 1.0  # AdamW: learning rate over that of the matrices
    weight_decay: float = 0.1  # weight decay per unit of learning rate, for all tensors

    def build(self, dims: Any) -> Transformation:
        """See `Optimizer.build`."""
        muon = optax.contrib.scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.beta,
            weight_dimension_numbers=jax.tree.map(_dimension_numbers, dims),
        )
        adamw = optax.scale_by_adam(self.b1, self.b2, self.eps)
        kinds = jax.tree.map(lambda d: "muon" if is_inner(d) else "adamw", dims)
        return optax.chain(
            _promoting(optax.partition({"muon": muon, "adamw": adamw}, kinds)),
            _each(lambda u, p, d, _: self._scale(p.shape, d) * u if is_inner(d) else u, dims),
            _descend(dims, self.decay, self.weight_decay),
            _each(lambda u, p, d, _: u if is_inner(d) else self.adamw_scale * u, dims),
        )

    def _scale(self, shape: tuple[int, ...], dims: str) -> float:
        inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in fan(dims))
        if self.consistent_rms is None:
            return math.sqrt(max(1.0, outputs / inputs))
        return self.consistent_rms * math.sqrt(max(inputs, outputs))


class _Relative(Optimizer):
    """What both kinds of Adafactor share: learning rates relative to the RMS of each tensor."""

    peak_lr: float = 1e-2  # learning rate at the peak of the schedule, relative to a tensor's RMS
    schedule: Schedule = Rsqrt()  # learning rate over its peak, by step
    b2_power: float = 0.8  # squared gradients are averaged with b2 = 1 - k^-b2_power at update k
    eps_gradient: float = 1e-30  # added to squared gradients
    eps_parameter: float = 1e-3  # least RMS that a tensor is taken to have
    clip_update: float = 1.0  # greatest RMS of an update over its learning rate

    def _direction(self, dims: Any, factored: Callable[[str], bool]) -> Transformation:
        return optax.chain(
            _over_root_mean_square(dims, factored, self.b2_power, self.eps_gradient),
            _each(lambda u, p, d, _: u / jnp.maximum(1.0, _rms(u, d) / self.clip_update), dims),
            _each(lambda u, p, d, _: jnp.maximum(self.eps_parameter, _rms(p, d)) * u, dims),
        )


class Adafactor(_Relative):
    """Second moments of a matrix from their means over its rows and columns alone.

        b2 = 1 - k^-0.8,  k = 1, 2, ...
        r = b2 r + (1 - b2) mean over outputs of (g^2 + eps_gradient);  c likewise over inputs
        u = g / sqrt(r c / mean(r));  u = u / max(1, RMS(u) / clip_update)
        p -= lr (max(eps_parameter, RMS(p)) u + weight_decay p)

    Shazeer and Stern (arXiv 1804.04235), algorithms 4 (matrices) and 5 (vectors, whose second
    moments stay whole). Defaults: section 9, with a learning rate of min(1e-2, 1 / sqrt(k)), no
    momentum and no decay.
    """

    weight_decay: float = 0.0  # weight decay per unit of learning rate

    def build(self, dims: Any) -> Transformation:
        """See `Optimizer.build`."""
        direction = self._direction(dims, factored=is_matrix)
        return optax.chain(direction, _descend(dims, self.decay, self.weight_decay))


class PaLMAdafactor(_Relative):
    """Adafactor without factorisation, as PaLM was trained: Adam at rates relative to each tensor.

        b2 = 1 - k^-0.8,  k = 1, 2, ...;  v = b2 v + (1 - b2) (g^2 + eps_gradient)
        u = g / sqrt(v);  u = u / max(1, RMS(u) / clip_update)
        m = b1 m + (1 - b1) lr max(eps_parameter, RMS(p)) u
        p -= m + lr^2 p

    PaLM (arXiv 2204.02311, section 5). What the paper leaves open is T5X's (`t5x/adafactor.py`,
    `apply_param_gradient` with factored=False, beta1=0.9, weight_decay_rate_lr_exponent=2.0): the
    momentum averages updates already scaled and has no bias correction; the decay is the bare rate
    squared, outside momentum and parameter scale, on every tensor; updates are clipped to RMS 1.
    """

    decay: Decay = Everything()  # which tensors weight decay applies to
    b1: float = 0.9  # decay of the mean of updates
    decay_power: float = 2.0  # weight decay of a step is its learning rate to this power

    def build(self, dims: Any) -> Transformation:
        """See `Optimizer.build`."""

        def descend(m: jax.Array, p: jax.Array, d: str, lr: jax.Array) -> jax.Array:
            return -(m + lr**self.decay_power * p) if self.decay.applies(d) else -m

        return optax.chain(
            self._direction(dims, factored=lambda d: False),
            _each(lambda u, p, d, lr: lr * u, dims),
            optax.ema(self.b1, debias=False),
            _each(descend, dims),
        )


class SecondMoments(NamedTuple):
    """State of Adafactor: means of squared gradients."""

    updates: jax.Array  # how many were made, int32
    means: Any  # per tensor a dict: "whole", or "rows" and "columns"


def _over_root_mean_square(
    dims: Any, factored: Callable[[str], bool], power: float, eps: float
) -> optax.GradientTransformation:
    """g over the root of its mean square, averaged with b2 = 1 - k^-power at update k."""

    def kept(x: jax.Array, d: str) -> dict[str, jax.Array]:
        inputs, outputs = fan(d)
        if factored(d):
            return {"rows": jnp.mean(x, outputs), "columns": jnp.mean(x, inputs)}
        return {"whole": x}

    def init(params: Any) -> SecondMoments:
        # Means of zeros, not zeros of their shape: so they come out laid out on the mesh.
        means = jax.tree.map(lambda p, d: kept(jnp.zeros_like(p), d), params, dims)
        return SecondMoments(updates=jnp.zeros((), jnp.int32), means=means)

    def update(grads: Any, state: SecondMoments, params: Any = None) -> tuple[Any, SecondMoments]:
        k = state.updates + 1
        new = k.astype(jnp.float32) ** -power  # 1 - b2

        def average(g: jax.Array, old: dict[str, jax.Array], d: str) -> dict[str, jax.Array]:
            squares = kept(g * g + eps, d)
            return {name: (1.0 - new) * old[name] + new * squares[name] for name in old}

        means = jax.tree.map(average, grads, state.means, dims)
        return jax.tree.map(_over_root, grads, means, dims), SecondMoments(k, means)

    return optax.GradientTransformation(init, update)


def _over_root(g: jax.Array, means: dict[str, jax.Array], dims: str) -> jax.Array:
    if "whole" in means:
        return g * jax.lax.rsqrt(means["whole"])
    inputs, outputs = fan(dims)
    rows = jnp.expand_dims(means["rows"], outputs)
    columns = jnp.expand_dims(means["columns"], inputs)
    # Two roots and not one of the product, which would underflow: eps_gradient^2 is no fp32 number.
    return g * jax.lax.rsqrt(rows / jnp.mean(rows, inputs, keepdims=True)) * jax.lax.rsqrt(columns)


def _descend(dims: Any, decay: Decay, weight_decay: float) -> Transformation:
    """u to -lr (u + weight_decay p)."""

    def change(u: jax.Array, p: jax.Array, d: str, lr: jax.Array) -> jax.Array:
        return -lr * (u + weight_decay * p) if decay.applies(d) else -lr * u

    return _each(change, dims)


def _each(
    change: Callable[[jax.Array, jax.Array, str, jax.Array], jax.Array], dims: Any
) -> Transformation:
    """Every update becomes `change(update, parameter, dims, learning rate)`; keeps no state."""

    def update(
        updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        changed = jax.tree.map(
            lambda u, p, d: change(u, p, d, learning_rate), updates, params, dims
        )
        return changed, state

    return Transformation(optax.init_empty_state, update)


def _promoting(tx: optax.GradientTransformation) -> Transformation:
    """`tx` under JAX's default promotion: optax raises floats to int32, refused when strict."""
    inner = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return Transformation(inner.init, update)


def _rms(x: jax.Array, dims: str) -> jax.Array:
    """Root mean square of every tensor of a stack, as an array of x's rank."""
    inputs, outputs = fan(dims)
    return jnp.sqrt(jnp.mean(x * x, inputs + outputs, keepdims=True))


def _dimension_numbers(dims: str) -> Any:
    return optax.contrib.MuonDimensionNumbers(*fan(dims)) if is_inner(dims) else optax.MaskedNode()


def _refuse(node: Optimizer, name: str, fits: Callable[[float], bool], range_: str) -> None:
    """Raises Mistake where `node` has a field of this name, not None, that does not fit."""
    value = getattr(node, name, None)
    if value is not None and not fits(value):
        raise Mistake(f"optim.{name} is {value}: set it to {range_}.")
