"""How long a compiled step takes: its schedule played through on paper.

Compute is what a `Clock` says of each instruction, times the trips of the loops around it. A link of a
device does one collective at a time; one that is asynchronous runs beside what the schedule has
between its start and its end, and the rest of it is exposed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pretrain.planning import collectives
from pretrain.planning.collectives import Collective
from pretrain.planning.hlo import Instruction, Module
from pretrain.planning.target import Target

START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclass(frozen=True)
class Work:
    """What an instruction computes, run once on one device."""

    flops: int  # of products
    seconds: float
    kernel: bool = False  # whether it is an attention kernel, whose time is no fusion's


class Clock(Protocol):
    """How long the instructions of one kind of chip take."""

    fusions: str  # what the time of fusions is derived from, in words
    kernels: str  # and that of attention kernels

    def __call__(self, module: Module, instruction: Instruction) -> Work:
        """The work of an instruction, without that of the computations that it calls."""
        ...


@dataclass
class Cost:
    """Sums over a step on one device. Seconds of collectives are those exposed and all."""

    fusions: float = 0.0  # seconds
    kernels: float = 0.0  # seconds of attention kernels
    flops: int = 0  # of products and kernels, what is recomputed among them
    exposed: float = 0.0  # seconds in which the device waits for a collective
    collectives: list[tuple[Collective, int]] = field(default_factory=list)  # and how often
    by_name: dict[str, float] = field(default_factory=dict)  # seconds by operation of the model

    @property
    def compute(self) -> float:
        """Seconds of fusions and kernels."""
        return self.fusions + self.kernels

    @property
    def communication(self) -> float:
        """Seconds of all collectives, whether anything runs beside them or not."""
        return sum(each.seconds * times for each, times in self.collectives)

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.exposed

    def spend(self, name: str, seconds: float) -> None:
        """Count seconds under an operation's name."""
        self.by_name[name] = self.by_name.get(name, 0.0) + seconds

    def largest(self, count: int) -> list[tuple[str, float]]:
        """The operations that take longest."""
        return sorted(self.by_name.items(), key=lambda item: -item[1])[:count]


def of(module: Module, mesh: Any, target: Target, clock: Clock) -> Cost:
    """The cost of the module's entry on one device of the mesh."""
    cost = Cost()
    _Play(module, mesh, target, clock, cost).run(module.entry, 1)
    return cost


class _Play:
    """Plays computations through: a clock for what computes, another for the links."""

    def __init__(self, module: Module, mesh: Any, target: Target, clock: Clock, cost: Cost) -> None:
        self.module, self.mesh, self.target = module, mesh, target
        self.clock, self.cost = clock, cost
        self.received: dict[str, str] = {}  # by what receives it, the key of what comes

    def run(self, computation: str, times: int) -> None:
        """Add what a computation costs that runs so many times."""
        now = 0.0
        free: dict[str, float] = {}  # when a link has done what was begun
        ends: dict[str, float] = {}
        for instruction in self.module.instructions(computation):
            for inner, trips in self._inside(instruction):
                self.run(inner, times * trips)
            now += self._compute(instruction, times)
            key, begins, waits = self._collective(instruction)
            if begins is not None:
                self.cost.collectives.append((begins, times))
                ready = max([now, *(free.get(link, 0.0) for link in begins.links)])
                ends[key] = ready + begins.seconds
                free |= dict.fromkeys(begins.links, ends[key])
            if waits and ends.get(key, 0.0) > now:
                self.cost.exposed += (ends[key] - now) * times
                self.cost.spend(
                    f"waiting for {label(instruction, begins)}", (ends[key] - now) * times
                )
                now = ends[key]

    def _inside(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.opcode == "while" and instruction.body:
            yield instruction.body[1], self.module.trips(instruction)
        elif instruction.opcode == "call" and instruction.calls:
            yield instruction.calls, 1

    def _compute(self, instruction: Instruction, times: int) -> float:
        """Seconds of an instruction that computes, once."""
        work = self.clock(self.module, instruction)
        if work.kernel:
            self.cost.kernels += work.seconds * times
        else:
            self.cost.fusions += work.seconds * times
        self.cost.flops += work.flops * times
        if work.seconds:
            self.cost.spend(operation(instruction), work.seconds * times)
        return work.seconds

    def _collective(self, instruction: Instruction) -> tuple[str, Collective | None, bool]:
        """Its key, what begins here, and whether the device waits for its end here."""
        if instruction.opcode.endswith("-done") and instruction.operands:
            began = instruction.operands[0]
            return self.received.get(began, began), None, True
        if key := collectives.rendezvous(instruction):
            if instruction.opcode == "send":
                return key, collectives.between_slices(instruction, self.mesh, self.target), False
            self.received[instruction.name] = key
            return "", None, False
        inner = collectives.find(self.module, instruction)
        if inner is None and instruction.opcode == "call-start":
            beside = collectives.on_sparsecores(instruction, self.target)
            return instruction.name, beside, False
        if inner is None:
            return "", None, False
        targets = {each.target for each in self.module.within(instruction)}
        if DONE in targets:
            return inner.channel or "", None, True
        if "async_collective_fusion" in (instruction.calls or ""):
            return "", None, False  # a step of one that was begun before
        begins = collectives.describe(self.module, instruction, inner, self.mesh, self.target)
        if START in targets:
            return inner.channel or "", begins, False
        return instruction.name, begins, not instruction.opcode.endswith("-start")


def label(instruction: Instruction, begins: Collective | None) -> str:
    """A collective in words: its kind and the operation that it belongs to."""
    kind = begins.kind if begins else "a collective"
    return f"{kind} ({operation(instruction)})"


def operation(instruction: Instruction) -> str:
    """Forward or backward, and the einsum or the function that an instruction came from."""
    # Collectives that were combined name all that they were: "jit(f)/(jvp()/reshard:update/add)".
    path = re.sub(r"/\(([^:]*):.*\)$", r"/\1", instruction.op_name).split("/")
    direction = (
        "again forward" if "rematted_computation" in path
        else "backward" if any("transpose" in part for part in path)
        else "forward" if any("jvp" in part for part in path)
        else "update"
    )  # fmt: skip
    plain = [part for part in path if part and "(" not in part and part not in _PLUMBING]
    return f"{direction} {'/'.join(plain[-2:])}" if plain else instruction.opcode


_PLUMBING = {
    "while", "body", "closed_call", "checkpoint", "rematted_computation", "shard_map", "pallas_call",
}  # fmt: skip
