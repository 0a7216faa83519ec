"""What a program is compiled for: so many chips of one kind, and how they are joined."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.planning.chips import Chip


@dataclass(frozen=True)
class Target:
    """So many equal slices of one kind of chip, or one cluster."""

    chip: Chip
    layout: tuple[int, ...]  # of the chips of one slice, or hosts and chips a host
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.layout) * self.slices

    @property
    def size(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def limit(self) -> int:
        """Bytes of HBM that a program may use, of one device."""
        return self.chip.hbm_bytes

    @property
    def allowance(self) -> str:
        """What `limit` is, in words."""
        return "what the compiler gives a program"

    @property
    def lowering(self) -> str:
        """JAX's name for the platform that programs are lowered for."""
        return self.chip.platform

    @property
    def compiler(self) -> str:
        """What the compiler's answer depends on, beside the program and its options."""
        raise NotImplementedError

    def devices(self) -> Sequence[Any]:
        """JAX devices that can be compiled for, on any machine.

        Raises Mistake where the compiler is not installed or knows no such topology.
        """
        raise NotImplementedError

    def seconds(self, kind: str, size: int, devices: Sequence[Any], rings: int = 0) -> float:
        """For a collective of `size` bytes among two or more devices, at the links' published rates.

        `size` is of the whole tensor: gathered, reduced, or sent. `rings` of one direction are what the
        compiler cuts it into, 0 where it does not say.
        """
        raise NotImplementedError

    def links(self, devices: Sequence[Any]) -> frozenset[str]:
        """The links that a collective among these devices keeps busy: one at a time, all of them."""
        return frozenset({"links"})

    def longest(self, kind: str, size: int, groups: Sequence[Sequence[Any]]) -> float:
        """The same where several groups do it at once; on a torus they are alike."""
        return self.seconds(kind, size, groups[0])

    @property
    def wide(self) -> float:
        """Bytes a second into a device from all others, for a roofline."""
        raise NotImplementedError

    def near(self, count: int) -> float:
        """Bytes a second into a device from `count` - 1 beside it, for a roofline."""
        raise NotImplementedError

    def __str__(self) -> str:
        layout = "x".join(map(str, self.layout))
        return f"{self.chip.name}:{layout}" + (f", {self.slices} slices" * (self.slices > 1))
