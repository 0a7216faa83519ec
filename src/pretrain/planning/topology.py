"""Topologies: "v4:16x16x12" or "h100:4x8", and the devices of a TPU slice that is not attached."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from pretrain.config import Mistake
from pretrain.planning import cluster
from pretrain.planning.chips import Gpu, Tpu, chip
from pretrain.planning.target import Target

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
class Topology(Target):
    """So many equal slices of one kind of TPU."""

    chip: Tpu

    @property
    def compiler(self) -> str:
        """The version of libtpu."""
        return version("libtpu")

    @property
    def wide(self) -> float:
        """Both directions of every dimension of the torus."""
        return 2 * self.chip.dims * self.chip.link_bandwidth

    def near(self, count: int) -> float:
        """Both directions of one dimension, or what joins the devices of one chip."""
        on_chip = 1 < count <= self.chip.devices
        return self.chip.die_bandwidth if on_chip else 2 * self.chip.link_bandwidth

    def seconds(self, kind: str, size: int, devices: Sequence[Any], rings: int = 0) -> float:
        """For a collective of `size` bytes among these devices, at the published rates of the links.

        Where a chip is several devices, those of a group take a part each over the links of the chip and
        exchange their parts on it; where they belong to several groups, these share the links. A ring of
        one direction is on one link at a time. Between slices each device sends its share over the
        network.
        """
        n = len(devices)
        chips = len({(slice_of(d), tuple(d.coords)) for d in devices})
        beside = n // chips  # devices of the group on one chip
        sharing = self.chip.devices / beside  # groups that do the same on that chip
        # Of an all-to-all `size` is one device's: the parts of all n go a quarter of the way around.
        passes = {
            "all-reduce": 2.0, "all-to-all": n / 4 * n / (n - 1), "collective-permute": n / (n - 1),
        }  # fmt: skip
        moved = passes.get(kind, 1.0) * size
        slices = len({slice_of(d) for d in devices})
        rate = self.rate(devices)
        rate = min(rate, rings * self.chip.link_bandwidth) if rings else rate
        on_links = moved * (chips - 1) / chips * sharing / rate
        on_chip = moved * (beside - 1) / beside / self.chip.die_bandwidth if beside > 1 else 0.0
        within = max(on_links if chips > slices else 0.0, on_chip)
        if slices == 1:
            return within
        # Each device holds its part of the tensor when the slices exchange theirs.
        share = moved / (n // slices) * self.chip.devices
        across = share * (slices - 1) / slices / self.chip.network_bandwidth
        return within + across

    def longest(self, kind: str, size: int, groups: Sequence[Sequence[Any]]) -> float:
        """The same where several groups do it at once: alike, unless some are devices of one chip."""
        some = groups if self.chip.devices > 1 else groups[:1]
        return max(self.seconds(kind, size, group) for group in some)

    def links(self, devices: Sequence[Any]) -> frozenset[str]:
        """Those of every dimension that the group spans, those on a chip, and the network of slices."""
        slices, first = {slice_of(d) for d in devices}, slice_of(devices[0])
        at = [tuple(d.coords) for d in devices if slice_of(d) == first]
        rows = enumerate(zip(*at, strict=True))
        spanned = [f"dimension {dim}" for dim, row in rows if len(set(row)) > 1]
        on_chip = ["chip"] * (len(set(at)) < len(at))
        return frozenset(spanned + on_chip + ["network"] * (len(slices) > 1))

    def rate(self, devices: Sequence[Any]) -> float:
        """Bytes a second into one chip of a group, over all the links that the group uses.

        A ring uses both directions of every dimension of the torus that its group fills, and one where
        the group is shorter than the torus, which is then no ring.
        """
        first = slice_of(devices[0])
        at = np.array([d.coords for d in devices if slice_of(d) == first])
        links = 0
        for dim, size in enumerate(self.layout):
            spans = len(set(at[:, dim].tolist()))
            # A whole dimension of 4 or more is wired around (of 16 where the torus has two dimensions).
            around = spans == size and size >= (4 if self.chip.dims == 3 else 16)
            links += 0 if spans == 1 else 2 if around else 1
        return max(links, 1) * self.chip.link_bandwidth

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


def slice_of(device: Any) -> int:
    """The slice that a device is in; a topology of one slice does not number it."""
    return getattr(device, "slice_index", 0)


def parse(text: str, slices: int = 1) -> Target:
    """What --topology and --slices mean. Raises Mistake where there is no such thing."""
    if slices < 1:
        raise Mistake(f"--slices is {slices}: make it 1 or more.")
    name, _, size = text.partition(":")
    kind = chip(name)
    if isinstance(kind, Gpu):
        return cluster.parse(text, kind, size, slices)
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


def of_count(kind: Tpu, count: int) -> tuple[int, ...]:
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


def example(kind: Tpu) -> str:
    """A layout of this chip, for messages."""
    return "x".join(["4"] * kind.dims)
