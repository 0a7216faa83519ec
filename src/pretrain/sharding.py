"""Mesh axes, the table from logical axes to mesh axes, and the verbs that lay tensors out.

Models name *logical* axes only (`"batch seq heads head_dim"`); `Rules` is the one table that maps them
to *mesh* axes; a layout is part of an array's type (`AxisType.Explicit`), so a wrong one is an error
while tracing, on a CPU, before anything runs.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from pretrain.config import Mistake, Node

AXES = ("replica", "data", "fsdp", "seq", "tensor")
Axes = tuple[str, ...]


class Mesh(Node):
    """How many devices each mesh axis spans; the product is the number of devices used."""

    replica: int = 1  # copies of the model on slices joined by the data-centre network
    data: int = 1  # copies of the model within a slice; the batch is split over them
    fsdp: int = -1  # the batch, and parameters and optimizer state too, are split over it
    seq: int = 1  # context parallelism: positions of one sequence are split over it
    tensor: int = 1  # tensor parallelism: heads, feed-forward and vocabulary are split over it

    def sizes(self, devices: int) -> dict[str, int]:
        """Sizes in the order of `AXES`, the -1 filled in. Raises Mistake where they do not fit."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "all 1"
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise Mistake(
                    f"mesh.{axis} is {size}: an axis has 1 or more devices, or -1 for the rest."
                )
        open_axes = [axis for axis, size in sizes.items() if size == -1]
        if len(open_axes) > 1:
            raise Mistake(
                f"mesh.{' and mesh.'.join(open_axes)} are both -1: only one axis can be the rest."
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if devices % fixed if open_axes else devices != fixed:
            fitting = [n for n in range(1, devices + 1) if devices % n == 0]
            raise Mistake(
                f"mesh ({asked}) needs {'a multiple of ' if open_axes else ''}{fixed} devices and there "
                f"are {devices}: choose axis sizes whose product divides {devices} ({fitting}), "
                "one axis may be -1 for the rest."
            )
        for axis in open_axes:
            sizes[axis] = devices // fixed
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The device mesh, all axes explicit; `replica` crosses slices where there are several."""
        devices = jax.devices() if devices is None else devices
        try:
            sizes = self.sizes(len(devices))
        except Mistake as mistake:
            if devices[0].platform != "cpu":
                raise
            raise Mistake(f"{mistake} --cpu-devices makes more of a CPU.") from None
        slices = len({getattr(d, "slice_index", 0) for d in devices})
        if slices > 1:
            if sizes["replica"] != slices:
                raise Mistake(
                    f"mesh.replica is {sizes['replica']} and the devices form {slices} slices: "
                    f"set it to {slices}."
                )
            within = (1, *list(sizes.values())[1:])
            across = (slices, *[1] * (len(AXES) - 1))
            grid = mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(
                tuple(sizes.values()), devices, allow_split_physical_axes=True
            )
        return jax.sharding.Mesh(
            np.asarray(grid), AXES, axis_types=(AxisType.Explicit,) * len(AXES)
        )

    def abstract(self, devices: int) -> AbstractMesh:
        """The mesh of that many devices without a device: shapes and layouts, nothing to run on."""
        sizes = tuple(self.sizes(devices).values())
        return AbstractMesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


class Rules(Node):
    """THE table: which mesh axes split each logical axis. A row may be overridden; () replicates."""

    # activations
    batch: Axes = ("replica", "data", "fsdp")  # sequences of a batch
    seq: Axes = ("seq",)  # query positions inside a block
    kv_seq: Axes = ()  # key and value positions inside a block; () gathers them
    # positions of the residual stream; ("seq", "tensor") is Megatron's
    residual_seq: Axes = ("seq",)
    residual: Axes = ()  # features of the residual stream; ("tensor",) where positions do not divide
    # activations and weights
    heads: Axes = ("tensor",)  # query heads
    kv_heads: Axes = ("tensor",)  # key/value heads where there are several; one is always whole
    head_dim: Axes = ()  # features of a head
    mlp: Axes = ("tensor",)  # feed-forward features
    vocab: Axes = ("tensor",)  # vocabulary
    # weights
    embed: Axes = ("fsdp",)  # d_model of a matrix; gathered where the matrix is used
    hidden: Axes = ()  # d_model of a vector: norm gains, biases
    positions: Axes = ()  # rows of a learned position table
    layers: Axes = ()  # stacked layers


_rules: ContextVar[Rules] = ContextVar("rules", default=Rules())  # noqa: B039 (frozen)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh | AbstractMesh, rules: Rules) -> Iterator[None]:
    """Everything traced inside is laid out on `mesh` by `rules`; on an abstract one nothing can run."""
    for field in fields(rules):
        for axis in getattr(rules, field.name):
            if axis not in mesh.shape:
                raise Mistake(
                    f"rules.{field.name} names the mesh axis {axis!r}; the axes are {', '.join(AXES)}."
                )
    token = _rules.set(rules)
    try:
        with (
            jax.sharding.use_abstract_mesh(mesh)
            if isinstance(mesh, AbstractMesh)
            else jax.set_mesh(mesh)
        ):
            yield
    finally:
        _rules.reset(token)


def names(dims: str) -> tuple[str, ...]:
    """The logical axes of "layers | embed -> heads head_dim", one per dim of the tensor."""
    return tuple(name for name in dims.split() if name not in ("->", "|") and name[0] not in "+=")


def spec(dims: str) -> PartitionSpec:
    """Logical axes to a PartitionSpec on the current mesh.

    "-" is a dim that is never split. "+mlp" behind the dims: the tensor is the sum of what the devices
    along the axes of `mlp` have, and not added up yet. "=mlp": it is alike on all of them, and its
    gradient is such a sum. Mesh axes of size one vanish (an axis of one device in a type would make
    equal layouts unequal), and so do manual ones, inside `shard_map`. Raises Mistake where two dims
    claim one mesh axis.
    """
    owner: dict[str, str] = {}
    entries: list[Axes | None] = []
    for name in names(dims):
        axes = _axes(name)
        for axis in axes:
            if axis in owner:
                raise Mistake(
                    f"rules.{owner[axis]} and rules.{name} both split by mesh axis {axis!r} in one "
                    f"tensor ({dims}): take {axis!r} out of one of the two rows."
                )
            owner[axis] = name
        entries.append(axes or None)
    sums, copies = (
        {axis for word in dims.split() if word[0] == sign for axis in _axes(word[1:])} - set(owner)
        for sign in "+="
    )
    return PartitionSpec(*entries, unreduced=sums, reduced=copies)


def _axes(name: str) -> Axes:
    """The mesh axes of a row of the table that split anything here."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        axis
        for axis in (() if name == "-" else getattr(_rules.get(), name))
        if mesh.shape.get(axis, 1) > 1 and mesh._name_to_type[axis] == AxisType.Explicit
    )


def ways(dims: str) -> int:
    """Into how many parts the current mesh splits a tensor with these logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in mesh_axes(spec(dims)))


def split(dims: str, shape: Sequence[int]) -> PartitionSpec:
    """`spec(dims)` for a tensor of this shape. Raises Mistake where a dim does not divide."""
    mesh, partition = jax.sharding.get_abstract_mesh(), spec(dims)
    for name, size, axes in zip(names(dims), shape, partition, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in axes_in(axes))
        if size % parts:
            raise Mistake(
                f"{name} has size {size} in a tensor ({dims}) and mesh axis {axes} splits it {parts} ways: "
                f"make it a multiple of {parts}, or set rules.{name} to fewer axes."
            )
    return partition


def param(key: jax.Array, dims: str, shape: Sequence[int], init: Any) -> nnx.Param:
    """A parameter, fp32, created in its layout.

    `dims` names its logical axes, inputs before "->" and outputs behind it ("embed -> mlp"); a vector
    has no arrow. Optimizers and initialisers read matrix or vector, fan-in and fan-out from it. `init`
    is a `models.init.Init`; its root mean square stays with the parameter beside `dims`.
    """
    shape = tuple(shape)
    values = init(key, dims, shape, split(dims, shape))
    return nnx.Param(values, dims=dims, rms=init.rms(dims, shape))


def gathered(w: jax.Array) -> jax.Array:
    """A weight made whole along the mesh axes of `rules.embed`: FSDP's all-gather.

    Call it after the cast to the compute dtype, so that half the bytes travel; its transpose is the
    reduce-scatter of the gradient.
    """
    stored = set(_rules.get().embed)
    held = jax.typeof(w).sharding.spec
    kept = [tuple(a for a in axes_in(entry) if a not in stored) or None for entry in held]
    return jax.sharding.reshard(w, PartitionSpec(*kept))


def scatter(dims: str) -> Callable[[jax.Array], jax.Array]:
    """What adds up a parameter's gradient inside a `shard_map` over all axes. Call it outside of that.

    There every device has the gradient of its own tokens, whole along `rules.embed`, and is left with
    that part of the sum which it stores: FSDP's reduce-scatter.
    """
    tokens = axes_of("batch seq")
    places = enumerate(zip(names(dims), spec(dims), strict=True))
    held = [
        (axis, dim) for dim, (name, entry) in places if name == "embed" for axis in axes_in(entry)
    ]
    rest = tuple(axis for axis in tokens if axis not in dict(held))

    def apply(grad: jax.Array) -> jax.Array:
        for axis, dim in held:
            if axis in tokens:
                grad = jax.lax.psum_scatter(grad, axis, scatter_dimension=dim, tiled=True)
            else:
                size = grad.shape[dim] // jax.lax.axis_size(axis)
                first = jax.lax.axis_index(axis) * size
                grad = jax.lax.dynamic_slice_in_dim(grad, first, size, dim)
        return across(jax.lax.psum, grad, rest)

    return apply


def as_sum(x: jax.Array, out: PartitionSpec) -> jax.Array:
    """x as a sum over devices that is still to be added up: of each what it has of x, and zeros."""
    held = jax.typeof(x).sharding.spec
    # In this order in every process: that of a set of words differs, and so would their programs.
    axes = tuple(axis for axis in AXES if axis in out.unreduced)

    def part(x: jax.Array) -> jax.Array:
        for axis in axes:
            index = jax.lax.axis_index(axis)
            split = [dim for dim, entry in enumerate(held.partitions) if axis in axes_in(entry)]
            if split:
                (dim,), size = split, jax.lax.axis_size(axis)
                shape = tuple(n * size if d == dim else n for d, n in enumerate(x.shape))
                first = index * x.shape[dim]
                x = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, x.dtype), x, first, dim)
            else:
                x = jnp.where(index == 0, x, jnp.zeros((), x.dtype))
        return jax.lax.pcast(x, axes, to="unreduced")

    return jax.shard_map(part, in_specs=held, out_specs=out)(x)


def copied(x: jax.Array) -> jax.Array:
    """The same without the promise that gradients are added up later."""
    return jax.sharding.reshard(x, plain(jax.typeof(x).sharding.spec))


def plain(partition: PartitionSpec) -> PartitionSpec:
    """The same without a word about sums."""
    return PartitionSpec(*partition.partitions)


def dual(partition: PartitionSpec) -> PartitionSpec:
    """The layout of the gradient of what is laid out so."""
    sums = {"unreduced": partition.reduced, "reduced": partition.unreduced}
    return PartitionSpec(*partition.partitions, **sums)


def lay(x: jax.Array, dims: str) -> jax.Array:
    """An activation laid out as `dims`: a collective where that differs from how it lies, else nothing."""
    out, held = spec(dims), jax.typeof(x).sharding.spec
    return _own(out, held, x) if held.reduced - out.reduced else jax.sharding.reshard(x, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _own(out: PartitionSpec, held: PartitionSpec, x: jax.Array) -> jax.Array:
    # Its transpose would be a gather and not `as_sum`.
    return jax.sharding.reshard(x, out)


_own.defvjp(
    lambda out, held, x: (_own(out, held, x), None),
    lambda out, held, _, dy: (as_sum(dy, dual(held)),),
)


def placed(tree: Any, mesh: jax.sharding.Mesh | AbstractMesh) -> Any:
    """Abstract arrays from `jax.eval_shape` with concrete shardings, scalars replicated: what Orbax takes."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        held = x.sharding.spec if x.sharding is not None else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, held))

    return jax.tree.map(place, tree)


def mesh_axes(partition: PartitionSpec) -> set[str]:
    """Every mesh axis that splits a tensor so laid out."""
    return {axis for entry in partition.partitions for axis in axes_in(entry)}


def across(collective: Callable[[Any, Axes], Any], tree: Any, axes: Axes) -> Any:
    """A collective over mesh axes, inside a `shard_map`, or nothing where there are none."""
    return collective(tree, axes) if axes else tree


def axes_of(dims: str) -> Axes:
    """The mesh axes that split these logical ones, the outermost first."""
    return tuple(axis for entry in spec(dims).partitions for axis in axes_in(entry))


def axes_in(entry: Any) -> Axes:
    """The mesh axes in one entry of a PartitionSpec, which may be none, a name or several."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
