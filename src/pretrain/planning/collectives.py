"""Collectives of a compiled program: what they move, between whom, and for how long."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.planning.hlo import BYTES, Instruction, Module, shapes
from pretrain.planning.target import Target

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective, run once."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, that its groups span
    bytes: int  # of the whole tensor: gathered, reduced, or sent
    seconds: float
    links: frozenset[str]  # that it keeps busy
    op_name: str


def find(module: Module, instruction: Instruction) -> Instruction | None:
    """The collective that an instruction is, starts, or hides in a fusion."""
    for each in (instruction, *module.within(instruction)):
        if each.opcode.removesuffix("-start") in KINDS:
            return each
    return None


def describe(
    module: Module, outer: Instruction, inner: Instruction, mesh: Any, target: Target
) -> Collective:
    """What the collective `inner` of the instruction `outer` costs on this target."""
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
    took = seconds(kind, size, [mesh.devices.flat[i] for i in group], target, rings(inner))
    if ways := pairs(inner):
        took = target.longest(kind, size, [[mesh.devices.flat[i] for i in way] for way in ways])
    links = target.links([mesh.devices.flat[i] for i in group])
    return Collective(kind, axes(group, mesh), size, took, links, inner.op_name)


def between_slices(instruction: Instruction, mesh: Any, target: Target) -> Collective:
    """What the `send` of a collective between slices costs, which the TPU compiler leaves to the host."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if transfer is None:
        raise ValueError(f"{instruction.name} sends something to a host that is no collective")
    kind = transfer[1].lower().replace("_", "-")
    group = [row[0] for row in mesh.devices.reshape(target.slices, -1)]
    kind_, dims = shapes(instruction.shape)[0]
    size = math.prod(dims) * BYTES[kind_]
    took = target.seconds(kind, size, group)
    return Collective(
        kind, mesh.axis_names[:1], size, took, target.links(group), instruction.op_name
    )


def on_sparsecores(instruction: Instruction, target: Target) -> Collective:
    """What a copy or a gather of rows costs that SparseCores make beside the TensorCore.

    Bytes are read and written at the published rate of memory. Raises ValueError for other work of theirs.
    """
    work = re.search(r'"offload":"OFFLOAD_(DATA_FORMATTING|GATHER)"', instruction.rest)
    if work is None:
        raise ValueError(f"{instruction.name} is run by a SparseCore and is no collective")
    kind, dims = shapes(instruction.shape)[-1]
    size = math.prod(dims) * BYTES[kind]
    name = {"DATA_FORMATTING": "copy", "GATHER": "gather of rows"}[work[1]]
    took = 2 * size / target.chip.hbm_bandwidth
    return Collective(name, (), size, took, frozenset({"SparseCores"}), instruction.op_name)


def rendezvous(instruction: Instruction) -> str | None:
    """What the `send` and the `recv` of one collective between slices share."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.rest)
    return found[1] if found else None


def seconds(kind: str, size: int, devices: Sequence[Any], target: Target, rings: int = 0) -> float:
    """For a collective of `size` bytes among these devices, at the published rates of the links."""
    return target.seconds(kind, size, devices, rings) if len(devices) > 1 else 0.0


def rings(inner: Instruction) -> int:
    """Of one direction, that a collective on SparseCores is cut into; 0 where nothing says so."""
    return inner.rest.count('"phase_rings"')


def pairs(inner: Instruction) -> list[list[int]]:
    """Partitions from and to which data is sent one to one, but to themselves; none for other kinds."""
    listed = re.search(r"source_target_pairs=\{(.*?\})\}", inner.rest)
    found = re.findall(r"\{(\d+),(\d+)\}", listed[1]) if listed else []
    return [[int(source), int(sink)] for source, sink in found if source != sink]


def members(inner: Instruction) -> list[int]:
    """The partitions of a collective's first group, in the order of the mesh's devices."""
    rest = inner.rest
    if kept := re.search(r"source_target_pairs=\{\{(\d+)", rest):
        return next(iter(pairs(inner)), [int(kept[1])])
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
