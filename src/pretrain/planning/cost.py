"""How long a compiled step takes: its schedule played through on paper.

Compute is the compiler's own estimate of each fusion, in cycles, times the trips of the loops around
it. The links of a device do one collective at a time; one that is asynchronous runs beside what the
schedule has between its start and its end, and the rest of it is exposed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pretrain.planning import collectives
from pretrain.planning.collectives import Collective
from pretrain.planning.hlo import Instruction, Module
from pretrain.planning.topology import Topology

START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
Kernel = Callable[[Module, Instruction], tuple[int, float]]
"""FLOPs and seconds of a Pallas kernel, for which the compiler has no estimate."""


@dataclass
class Cost:
    """Sums over a step on one device. Seconds of collectives are those exposed and all."""

    fusions: float = 0.0  # seconds, by the compiler's estimates
    kernels: float = 0.0  # seconds, by FLOPs and bytes
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


def of(module: Module, mesh: Any, topology: Topology, kernel: Kernel) -> Cost:
    """The cost of the module's entry on one device of the mesh."""
    cost = Cost()
    _Play(module, mesh, topology, kernel, cost).run(module.entry, 1)
    return cost


class _Play:
    """Plays computations through: a clock for what computes, another for the links."""

    def __init__(
        self, module: Module, mesh: Any, topology: Topology, kernel: Kernel, cost: Cost
    ) -> None:
        assert topology.chip.clock is not None
        self.module, self.mesh, self.topology = module, mesh, topology
        self.kernel, self.cost, self.clock = kernel, cost, topology.chip.clock

    def run(self, computation: str, times: int) -> None:
        """Add what a computation costs that runs so many times."""
        now, links = 0.0, 0.0
        ends: dict[str, float] = {}
        for instruction in self.module.instructions(computation):
            for inner, trips in self._inside(instruction):
                self.run(inner, times * trips)
            now += self._compute(instruction, times)
            key, begins, waits = self._collective(instruction)
            if begins is not None:
                self.cost.collectives.append((begins, times))
                links = ends[key] = max(now, links) + begins.seconds
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
        if instruction.target == "tpu_custom_call":
            flops, seconds = self.kernel(self.module, instruction)
            self.cost.kernels += seconds * times
        else:
            flops, seconds = self.module.flops(instruction), instruction.cycles / self.clock
            self.cost.fusions += seconds * times
        self.cost.flops += flops * times
        if seconds:
            self.cost.spend(operation(instruction), seconds * times)
        return seconds

    def _collective(self, instruction: Instruction) -> tuple[str, Collective | None, bool]:
        """Its key, what begins here, and whether the device waits for its end here."""
        if instruction.opcode.endswith("-done") and instruction.operands:
            return instruction.operands[0], None, True
        inner = collectives.find(self.module, instruction)
        if inner is None:
            return "", None, False
        targets = {each.target for each in self.module.within(instruction)}
        if DONE in targets:
            return inner.channel or "", None, True
        if "async_collective_fusion" in (instruction.calls or ""):
            return "", None, False  # a step of one that was begun before
        begins = collectives.describe(self.module, instruction, inner, self.mesh, self.topology)
        if START in targets:
            return inner.channel or "", begins, False
        return instruction.name, begins, not instruction.opcode.endswith("-start")


def label(instruction: Instruction, begins: Collective | None) -> str:
    """A collective in words: its kind and the operation that it belongs to."""
    kind = begins.kind if begins else "a collective"
    return f"{kind} ({operation(instruction)})"


def operation(instruction: Instruction) -> str:
    """Forward or backward, and the einsum or the function that an instruction came from."""
    path = instruction.op_name.split("/")
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
