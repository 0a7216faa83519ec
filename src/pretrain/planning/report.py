"""What a plan says: as one JSON object, and as text that tells what every number is derived from."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pretrain import compiler, flops
from pretrain.describe import binary, short
from pretrain.planning import cost, kernels, roofline
from pretrain.planning.collectives import KINDS
from pretrain.planning.compiled import Compiled
from pretrain.planning.cost import Clock, Cost
from pretrain.planning.hlo import Module
from pretrain.planning.target import Target

CLOCKS: dict[str, Callable[..., Clock]] = {"tpu": kernels.clock, "gpu": roofline.clock}
Totals = dict[tuple[str, tuple[str, ...]], tuple[int, int, float]]


@dataclass(frozen=True)
class Plan:
    """A compiled step on a topology, with what it costs."""

    topology: Target
    compiled: Compiled
    cost: Cost | None  # None where the step does not fit
    price: float | None = None  # of a chip for an hour

    @property
    def limit(self) -> int:
        """HBM that a program may use, of one device: as the compiler says, or the data sheet."""
        excess = self.compiled.excess
        return excess.limit if excess else self.topology.limit

    @property
    def options(self) -> compiler.Options:
        """What the compiler was given, as `launch` gives it on the real machine."""
        return compiler.on(self.topology.chip.platform, self.topology.chip.kind)

    @property
    def clock(self) -> Clock:
        """What tells how long the instructions of the program take."""
        chip, peak = self.topology.chip, flops.peak_flops(self.compiled.kind) or 0.0
        return CLOCKS[chip.platform](self.compiled.run, chip, peak)

    @property
    def tokens_per_step(self) -> int:
        """Of all devices."""
        return self.compiled.run.batch * self.compiled.run.seq_len

    @property
    def model_flops(self) -> int:
        """A step of all devices needs so many, by PaLM's formula."""
        run, number = self.compiled.run, self.compiled.parameters.total
        return self.tokens_per_step * flops.flops_per_token(run.model, number, run.seq_len)

    @property
    def peak(self) -> float:
        """FLOPs a second of all devices."""
        return (flops.peak_flops(self.compiled.kind) or 0.0) * self.topology.size

    def utilisation(self, done: float) -> float | None:
        """The share of the peak that so many FLOPs a step are."""
        return None if self.cost is None else done / self.cost.step / self.peak

    @property
    def collectives(self) -> Totals:
        """Count, bytes and seconds on one device and step, by kind and mesh axes."""
        sums: Totals = defaultdict(lambda: (0, 0, 0.0))
        for each, times in self.cost.collectives if self.cost else ():
            count, size, seconds = sums[each.kind, each.axes]
            sums[each.kind, each.axes] = (
                count + times, size + each.bytes * times, seconds + each.seconds * times,
            )  # fmt: skip
        return dict(sums)

    def to_json(self) -> dict[str, Any]:
        """Plain values; times are None where the step does not fit."""
        made, spent, run = self.compiled, self.cost, self.compiled.run
        used = made.memory.peak if made.memory else made.excess and made.excess.used
        done = None if spent is None else spent.flops * self.topology.size
        step = spent.step if spent else None
        hours = step and run.steps * step / 3600 * self.topology.chips
        return {
            "fits": made.excess is None,
            "hbm_peak_bytes": used,
            "hbm_limit_bytes": self.limit,
            "step_seconds": step,
            "compute_seconds": spent and spent.compute,
            "kernel_seconds": spent and spent.kernels,
            "collective_seconds": spent and spent.communication,
            "exposed_collective_seconds": spent and spent.exposed,
            "mfu": self.utilisation(self.model_flops),
            "hfu": done and self.utilisation(done),
            "tokens_per_second": step and self.tokens_per_step / step,
            "mesh": dict(made.mesh.shape),
            "remat": remat(run),
            "microbatches": run.microbatches,
            "compile_seconds": made.seconds,
            "parameters": made.parameters.total,
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "tokens_per_step": self.tokens_per_step,
            "model_flops": self.model_flops,
            "hardware_flops": done,
            "recompute_factor": done and done / self.model_flops,
            "memory": made.memory and dataclasses.asdict(made.memory),
            "over_bytes": made.excess and made.excess.over,
            "largest_buffers": made.excess and [
                dataclasses.asdict(each) for each in made.excess.largest
            ],
            "collectives": [
                {"kind": kind, "axes": list(axes), "count": count, "bytes": size, "seconds": seconds}
                for (kind, axes), (count, size, seconds) in self.collectives.items()
            ],
            "largest_costs": dict(spent.largest(3)) if spent else None,
            "days": step and run.steps * step / 86400,
            "chip_hours": hours,
            "cost": hours and self.price and hours * self.price,
            "compiler_options": self.options,
        }  # fmt: skip


def of(topology: Target, compiled: Compiled, price: float | None = None) -> Plan:
    """The plan of a compiled step: its program read, its schedule played through."""
    if compiled.excess is not None:
        return Plan(topology, compiled, None, price)
    plan = Plan(topology, compiled, None, price)
    spent = cost.of(Module(compiled.text), compiled.mesh, topology, plan.clock)
    return dataclasses.replace(plan, cost=spent)


def remat(run: Any) -> str:
    """What is kept for the backward pass: "keep query, key" or the policy's name."""
    kept = getattr(run.compute.remat, "save", None)
    return type(run.compute.remat).__name__ if kept is None else f"keep {', '.join(kept) or 'none'}"


def lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Name, and value with its derivation."""
    made, run, chip = plan.compiled, plan.compiled.run, plan.topology.chip
    axes = ", ".join(f"{axis} {n}" for axis, n in made.mesh.shape.items() if n > 1) or "one device"
    yield "topology", f"{plan.topology}: {plan.topology.chips:,} chips ({chip.source})"
    yield "mesh", f"{axes}; {run.microbatches} microbatches; {remat(run)}"
    yield (
        "model",
        f"{short(made.parameters.total)} parameters; {plan.tokens_per_step:,} tokens a step",
    )
    yield "compiled", f"in {made.seconds:.0f} s with {_options(plan)}"
    if made.memory:
        m = made.memory
        kept = "all" if m.activations is None else binary(m.activations)
        yield "memory", f"{binary(m.peak)} of {binary(plan.limit)} a device, as the compiler counts"
        yield "", f"the limit is {plan.topology.allowance}"
        yield "", f"parameters {binary(m.parameters)}, optimizer {binary(m.optimizer)}, from shapes"
        yield "", f"temporaries {binary(m.temporaries)}, of which activations kept {kept} by shapes"
    if made.excess:
        yield from _misfit(plan)
    if plan.cost:
        yield from _times(plan, plan.cost)


def _misfit(plan: Plan) -> Iterator[tuple[str, str]]:
    excess = plan.compiled.excess
    assert excess is not None
    yield "memory", f"does not fit: {binary(excess.over)} more than the {binary(excess.limit)}"
    yield "", f"the limit is {plan.topology.allowance}"
    for buffer in excess.largest[:5]:
        yield "", f"{binary(buffer.bytes)} {buffer.tensor or buffer.op_name} {buffer.shape[:60]}"


def _times(plan: Plan, spent: Cost) -> Iterator[tuple[str, str]]:
    json, run = plan.to_json(), plan.compiled.run
    yield "compute", f"{spent.fusions:.3f} s: {plan.clock.fusions}"
    none = "none in the program, attention is in compute"
    yield "kernels", f"{spent.kernels:.3f} s: {plan.clock.kernels if spent.kernels else none}"
    for (kind, axes), (count, size, seconds) in plan.collectives.items():
        sent = f"over {'+'.join(axes) or 'nothing'}", "link rates"
        where, rate = sent if kind in KINDS else ("on SparseCores", "rate of memory")
        yield kind, f"{seconds:.3f} s {where}: {count:,} of {binary(size)} together, {rate}"
    yield "exposed", f"{spent.exposed:.3f} s of collectives beside which the schedule has nothing"
    yield "step", f"{spent.step:.3f} s; {short(json['tokens_per_second'])} tokens/s"
    yield "MFU", f"{json['mfu']:.1%}: (6N + 12 L N_h H T) x tokens over {short(plan.peak)} FLOP/s"
    factor = json["recompute_factor"]
    yield "HFU", f"{json['hfu']:.1%}: products in the program, {factor:.2f} x the model's FLOPs"
    yield (
        "run",
        f"{run.steps:,} steps: {json['days']:.1f} days, {json['chip_hours']:,.0f} chip-hours",
    )
    if json["cost"]:
        yield "cost", f"{json['cost']:,.0f} at {plan.price} a chip-hour"
    for name, seconds in spent.largest(3):
        yield "largest", f"{seconds:.3f} s {name}"


def _options(plan: Plan) -> str:
    return " ".join(f"--{name}={value}" for name, value in plan.options.items())
