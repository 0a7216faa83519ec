"""Topologies: "v4:16x16x12" or "v5p:64", and the devices of one that is not attached."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import jax

from pretrain.config import Mistake
from pretrain.planning.chips import Chip, chip

# Slices of fewer chips than a cube of 4 x 4 x 4, of which larger ones are made; and those of two
# dimensions, by their number of chips.
SMALL: dict[int, tuple[int, ...]] = {
    1: (1, 1, 1),
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
}
FLAT: dict[int, tuple[int, ...]] = {
    4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16),
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """So many equal slices of one kind of chip."""

    chip: Chip
    layout: tuple[int, ...]  # of the chips of one slice
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.layout) * self.slices

    @property
    def size(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    def __str__(self) -> str:
        layout = "x".join(map(str, self.layout))
        return f"{self.chip.name}:{layout}" + (f", {self.slices} slices" * (self.slices > 1))

    def devices(self) -> Sequence[jax.Device]:
        """JAX devices that can be compiled for, on any machine.

        Raises Mistake where the compiler is not installed or knows no such topology.
        """
        from jax.experimental import topologies

        if find_spec("libtpu") is None:
            raise Mistake(
                "the compiler for TPUs is not installed: pip install 'pretrain[tpu]' brings libtpu."
            )
        # libtpu would ask the metadata server of the cloud, and refuse to be loaded by two processes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        name = f"{self.chip.name}:{'x'.join(map(str, self.layout))}"
        try:
            found = topologies.get_topology_desc(
                name, platform="tpu", num_slices=self.slices, **dict(self.chip.options)
            )
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Mistake(f"libtpu knows no topology {name}: {reason}.") from error
        return found.devices


def parse(text: str, slices: int = 1) -> Topology:
    """The topology that --topology and --slices mean. Raises Mistake where there is none."""
    if slices < 1:
        raise Mistake(f"--slices is {slices}: make it 1 or more.")
    name, _, size = text.partition(":")
    kind = chip(name)
    parts = size.split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise Mistake(
            f"--topology {text} gives no size: write {name}:{example(kind)}, or {name}:64 for so many "
            "chips."
        )
    layout = tuple(int(part) for part in parts)
    if len(layout) == 1:
        return Topology(kind, of_count(kind, layout[0]), slices)
    if len(layout) != kind.dims:
        raise Mistake(
            f"--topology {text} has {len(layout)} dimensions and a {name} slice has {kind.dims}: "
            f"such as {name}:{example(kind)}."
        )
    if any(n > most for n, most in zip(sorted(layout), sorted(kind.largest), strict=True)):
        largest = "x".join(map(str, kind.largest))
        raise Mistake(
            f"--topology {text} is larger than the largest slice, {name}:{largest}: ask for smaller "
            "ones, several with --slices."
        )
    return Topology(kind, layout, slices)


def of_count(kind: Chip, count: int) -> tuple[int, ...]:
    """The layout of a slice of so many chips: the nearest to a cube or a square.

    Raises Mistake where no slice has that many.
    """
    if kind.dims == 2:
        fitting = {n: layout for n, layout in FLAT.items() if n <= math.prod(kind.largest)}
    else:
        steps = [range(4, most + 1, 4) for most in sorted(kind.largest)]
        cubes = [c for c in itertools.product(*steps) if sorted(c) == list(c)]
        fitting = SMALL | {
            math.prod(c): c for c in sorted(cubes, key=lambda c: max(c) / min(c), reverse=True)
        }
    if count not in fitting:
        below = [n for n in sorted(fitting) if n < count][-2:]
        above = [n for n in sorted(fitting) if n > count][:2]
        near = ", ".join(map(str, below + above))
        raise Mistake(f"no {kind.name} slice has {count} chips; the nearest have {near}.")
    return fitting[count]


def example(kind: Chip) -> str:
    """A layout of this chip, for messages."""
    return "x".join(["4"] * kind.dims)
