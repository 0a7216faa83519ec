"""Collectives of a compiled program: what they move, between whom, and for how long."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.planning.hlo import BYTES, Instruction, Module, shapes
from pretrain.planning.topology import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective, run once."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, that its groups span
    bytes: int  # of the whole tensor: gathered, reduced, or sent
    seconds: float
    op_name: str


def find(module: Module, instruction: Instruction) -> Instruction | None:
    """The collective that an instruction is, starts, or hides in a fusion."""
    for each in (instruction, *module.within(instruction)):
        if each.opcode.removesuffix("-start") in KINDS:
            return each
    return None


def describe(
    module: Module, outer: Instruction, inner: Instruction, mesh: Any, topology: Topology
) -> Collective:
    """What the collective `inner` of the instruction `outer` costs on this topology.

    A ring uses both directions of every dimension of the torus that its group fills, and one where
    the group is shorter than the torus, which is then no ring. Between slices each chip sends its
    share over the network.
    """
    kind = inner.opcode.removesuffix("-start")
    group = members(inner)
    given = sum(
        math.prod(dims) * BYTES[k]
        for name in inner.operands
        for k, dims in shapes(module.shape_of(name))
    )
    scattered = any(i.opcode == "dynamic-slice" for i in module.within(outer))
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"  # as the TPU compiler writes one: an all-reduce fused with a slice
    size = given * len(group) if kind == "all-gather" else given
    devices = [mesh.devices.flat[i] for i in group]
    return Collective(
        kind, axes(group, mesh), size, seconds(kind, size, devices, topology), inner.op_name
    )


def seconds(kind: str, size: int, devices: Sequence[Any], topology: Topology) -> float:
    """For a collective of `size` bytes among these devices, at the published rates of the links."""
    n, chip = len(devices), topology.chip
    if n == 1:
        return 0.0
    passes = {"all-reduce": 2.0, "all-to-all": 0.25, "collective-permute": n / (n - 1)}
    moved = passes.get(kind, 1.0) * size * (n - 1) / n
    slices = len({slice_of(d) for d in devices})
    within = moved / rate(devices, topology) if n > slices else 0.0
    if slices == 1:
        return within
    # Each chip holds its part of the tensor when the slices exchange theirs.
    return within + passes.get(kind, 1.0) * size / (n // slices) / chip.network_bandwidth


def rate(devices: Sequence[Any], topology: Topology) -> float:
    """Bytes a second into one device of a group, over all the links that the group uses."""
    chip = topology.chip
    first = slice_of(devices[0])
    at = np.array([d.coords for d in devices if slice_of(d) == first])
    links = 0
    for dim, size in enumerate(topology.layout):
        spans = len(set(at[:, dim].tolist()))
        # A whole dimension of 4 or more is wired around (of 16 where the torus has two dimensions).
        around = spans == size and size >= (4 if chip.dims == 3 else 16)
        links += 0 if spans == 1 else 2 if around else 1
    return max(links, 1) * chip.link_bandwidth


def slice_of(device: Any) -> int:
    """The slice that a device is in; a topology of one slice does not number it."""
    return getattr(device, "slice_index", 0)


def members(inner: Instruction) -> list[int]:
    """The partitions of a collective's first group, in the order of the mesh's devices."""
    rest = inner.rest
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return [int(pairs[1]), int(pairs[2])]
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(n) for n in listed[1].split(",")]
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        dims = [int(n) for n in tiled[3].split(",")]
        order = [int(n) for n in tiled[4].split(",")] if tiled[4] else list(range(len(dims)))
        devices = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return devices.reshape(int(tiled[1]), int(tiled[2]))[0].tolist()
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", rest):
        sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", meshed[3])
        return _in_mesh(sizes, chosen, meshed[2])
    raise ValueError(f"{inner.name} names no group that is known: {rest[:200]}")


def _in_mesh(sizes: dict[str, int], chosen: list[tuple[str, str, str]], order: str) -> list[int]:
    """Partitions that differ along the chosen axes alone; 'a':(2)4 is 4 parts of a, behind 2."""
    dims, kept, at = list[int](), list[int](), 0
    for name, size in sizes.items():
        parts = [(int(before), int(n)) for axis, before, n in chosen if axis == name and n]
        whole = any(axis == name and not n for axis, _, n in chosen)
        cut = [size] if not parts else [parts[0][0], parts[0][1], size // math.prod(parts[0])]
        kept += [at] if whole else [at + 1] if parts else []
        dims += cut
        at += len(cut)
    count = math.prod(dims)
    ids = np.arange(count)
    if iota := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        shape = [int(n) for n in iota[1].split(",")]
        turn = [int(n) for n in iota[2].split(",")] if iota[2] else list(range(len(shape)))
        ids = ids.reshape(shape).transpose(turn)
    rest = [d for d in range(len(dims)) if d not in kept]
    return ids.reshape(dims).transpose([*rest, *kept]).reshape(-1, _product(dims, kept))[0].tolist()


def _product(dims: list[int], kept: list[int]) -> int:
    return math.prod(dims[d] for d in kept)


def axes(group: Sequence[int], mesh: Any) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    where = np.array(np.unravel_index(np.array(group), mesh.devices.shape))
    return tuple(
        name for name, row in zip(mesh.axis_names, where, strict=True) if len(set(row.tolist())) > 1
    )
