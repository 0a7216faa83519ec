"""What a layout would take, by shapes alone: bytes and seconds, before anything is compiled.

A search ranks thousands of layouts by this and compiles a few. Counted is what decides between two of
them: what is kept and what is computed again, what a block needs beside, what travels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from pretrain import compiler, flops
from pretrain.describe import activations, bytes_of
from pretrain.models.model import Architecture, Decoder
from pretrain.models.stack import SAVED, Recompute
from pretrain.planning import kernels, memory, report, roofline
from pretrain.planning.target import Target
from pretrain.program import Program
from pretrain.run import Run
from pretrain.sharding import Mesh, use

BF16, FP32 = 2, 4
# Of the peak, that products reach, and of the bandwidth, that all else does: on GPUs what plans assume; on
# TPUs what is nearest to the compiler's estimates of the programs in docs/benchmarks.md.
PRODUCTS = {"gpu": roofline.PRODUCTS, "tpu": 0.89}
STREAM = {"gpu": roofline.STREAM, "tpu": 0.6}
# Products of attention for the gradient, beside two forward; and the tiles that a mask lets through.
BACKWARD = {"gpu": roofline.BACKWARD, "tpu": kernels.PRODUCTS["dq"] + kernels.PRODUCTS["dkv"]}
TILES = {"gpu": roofline.TILE, "tpu": 1024}
# How often gradients pass the links while nothing runs beside: the TPU compiler sums them by all-reduces,
# of twice the bytes of a scatter, and does not make them asynchronous.
EXPOSED = {"gpu": 0, "tpu": 2}


@dataclass(frozen=True)
class Sizes:
    """What a model is, however it is laid out."""

    parameters: int  # rows that pad the vocabulary among them
    optimizer: int  # bytes
    block: int  # parameters of one layer
    head: int  # parameters of the matrix before the logits
    features: dict[str, int]  # of the activations that layers have names for, a token and a layer


@dataclass(frozen=True)
class Guess:
    """A layout with what it would take."""

    run: Run
    seconds: float
    bytes: int  # of one device

    def __str__(self) -> str:
        axes = ", ".join(f"{a} {n}" for a, n in vars(self.run.mesh).items() if n != 1)
        stream = {"residual": self.run.rules.residual, "residual_seq": self.run.rules.residual_seq}
        split = "".join(
            f"; {row} by {'+'.join(by)}" for row, by in stream.items() if "tensor" in by
        )
        micro = f"{self.run.microbatches} microbatches"
        return f"{axes or 'one device'}{split}; {micro}; {report.remat(self.run)}"


def sizes(run: Run) -> Sizes:
    """From the parameters, and from one forward pass of one sequence, traced for a single device."""
    mesh: Any = Mesh().abstract(1)
    run = replace(run, mesh=Mesh())
    with use(mesh, run.rules):
        program = Program(run, mesh)
        batch = program.batch(1, run.seq_len, masked=False)

        def loss(params: Any, batch: Any) -> Any:
            return run.objective.sums(nnx.merge(program.graph, params), batch)

        traced = jax.make_jaxpr(loss)(program.state.params, batch)
    count = dict.fromkeys(SAVED, 0)
    for name, size in named(traced.jaxpr, 1):
        if name in count:
            count[name] += size
    pairs = list(
        zip(jax.tree.leaves(program.dims), jax.tree.leaves(program.state.params), strict=True)
    )
    tables = [x.size for dims, x in pairs if "vocab" in dims.split()]
    layers = run.model.layers
    return Sizes(
        parameters=sum(x.size for _, x in pairs), optimizer=bytes_of(program.state.optimizer),
        block=sum(x.size for dims, x in pairs if dims.startswith("layers |")) // layers,
        head=max(tables, default=0),
        features={n: size // run.seq_len // layers for n, size in count.items() if size},
    )  # fmt: skip


def named(jaxpr: Any, times: int) -> Iterator[tuple[str, int]]:
    """Name and elements of everything that is named in a program, loops by their trips."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            yield eqn.params["name"], times * eqn.outvars[0].aval.size
        trips = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from named(inner, times * trips)


class Estimate:
    """Guesses for one model on one target."""

    def __init__(self, run: Run, target: Target) -> None:
        self.sizes, self.target = sizes(run), target
        self.platform = target.chip.platform
        self.peak = flops.peak_flops(target.chip.kind) or math.inf
        self.stream = STREAM[self.platform] * target.chip.hbm_bandwidth
        self.pairs = pairs(run, TILES[self.platform])
        options = compiler.on(self.platform, target.chip.kind)
        share = int(options.get("xla_gpu_memory_limit_slop_factor", 0)) / 100
        self.room = share * target.chip.hbm_bytes  # that a GPU's program is scheduled for

    def of(self, run: Run, policies: Sequence[tuple[str, ...]]) -> Iterator[Guess]:
        """The run with each of these policies: names of activations that are kept."""
        mesh, rows = run.mesh.sizes(self.target.size), self.rows(run)
        for names in policies:
            compute = replace(run.compute, remat=Recompute(save=names))
            seconds = self.seconds(run, mesh, rows, names)
            held = self.bytes(run, mesh, rows, names)
            yield Guess(replace(run, compute=compute), seconds, held)

    def rows(self, run: Run) -> dict[str, int]:
        """Bytes of one layer's activations on a device: those with names, and the stream around them."""
        with use(run.mesh.abstract(self.target.size), run.rules):
            found = {row.name: row.bytes for row in activations(run)}
            names = memory.named(run)
        return {name: names[name] for name in self.sizes.features} | {
            "residual": found["residual stream"], "inside": found["input of a block"],
            "wide": found["feed-forward"],
        }  # fmt: skip

    def bytes(
        self, run: Run, mesh: Mapping[str, int], rows: Mapping[str, int], names: Sequence[str]
    ) -> int:
        """Of one device at the height of the backward pass, in a block or at the logits."""
        size, parts = self.sizes, mesh["tensor"]
        added = 1 if run.microbatches == 1 else 2  # gradients of one microbatch, and of all
        gradients = added * FP32 * size.parameters
        state = (FP32 * size.parameters + size.optimizer + gradients) / (mesh["fsdp"] * parts)
        kept = run.model.layers * (rows["residual"] + sum(rows[name] for name in names))
        # Of the feed-forward: what is inside, its product, and the gradients of all. What is kept of it
        # is read where it lies; heads are cut out of what is kept.
        channels = [name for name in size.features if name.startswith("mlp")]
        wide = 2 * (len(channels) + 1) - sum(name in names for name in channels)
        heads = sum(rows[name] for name in size.features if name not in channels)
        inside = wide * rows["wide"] + heads + 4 * rows["inside"] + 2 * rows["residual"]
        # Weights of this block and of the next, gathered; this one's gradients before they are summed, and
        # after it where an all-reduce does that.
        sums = 2 if EXPOSED[self.platform] else 1
        block = inside + (2 * BF16 + sums * FP32) * size.block / parts
        head = (BF16 + 2 * FP32) * size.head / parts + 3 * run.objective.logits_bytes
        needed = state + kept + max(block, head + 3 * rows["inside"])
        # The zeros that the next microbatch's are written over, which XLA's GPU compiler makes early where
        # it has the room.
        early = min(kept, max(0.0, self.room - needed)) if run.microbatches > 1 else 0.0
        return round(needed + early)

    def seconds(
        self, run: Run, mesh: Mapping[str, int], rows: Mapping[str, int], names: Sequence[str]
    ) -> float:
        """Products, attention and what moves through memory, or what travels beside them; and waits."""
        products = 6 * self.weights(run) + again(self.sizes, run.model, names)
        attention = self.pairs * (BACKWARD[self.platform] + (2 if "attention" in names else 4))
        work = products / PRODUCTS[self.platform] + attention / kernels.EFFICIENCY
        compute = work * run.batch * run.seq_len / self.target.size / self.peak
        compute += self.moved(run, mesh, rows, names) / self.stream
        return max(compute, self.gathers(run, mesh)) + self.waits(run, mesh, rows)

    def gathers(self, run: Run, mesh: Mapping[str, int]) -> float:
        """Seconds of what travels beside products: weights to where they are used, and gradients back."""
        scattered = 0 if EXPOSED[self.platform] else FP32
        return self.travels(run, mesh, 2 * BF16 + scattered)  # weights forward and backward

    def waits(self, run: Run, mesh: Mapping[str, int], rows: Mapping[str, int]) -> float:
        """Seconds of what a device waits for: sums of gradients on TPUs, of activations over `tensor`."""
        gradients = self.travels(run, mesh, FP32 * EXPOSED[self.platform])
        parts = mesh["tensor"]
        if parts == 1:
            return gradients
        # A block sums forward and backward, and once less where it is computed again: what it ends with
        # is not needed. A split stream makes a scatter of each, and is gathered forward, again and
        # backward; else each is an all-reduce, which is both.
        sums = 3 * run.model.sums - 1
        split = rows["residual"] < rows["inside"]
        passes = sums + 3 * run.model.sums if split else 2 * sums
        each = rows["inside"] * (parts - 1) / parts / self.target.near(parts)
        return gradients + passes * run.model.layers * run.microbatches * each

    def travels(self, run: Run, mesh: Mapping[str, int], bytes_each: int) -> float:
        """Seconds of so many bytes a parameter over `fsdp`, for every microbatch."""
        if mesh["fsdp"] == 1:
            return 0.0
        total = bytes_each * self.weights(run) / mesh["tensor"] * run.microbatches
        return total / self.target.wide

    def weights(self, run: Run) -> int:
        """Parameters that are multiplied by: those of all layers and of the head."""
        return run.model.layers * self.sizes.block + self.sizes.head

    def moved(
        self, run: Run, mesh: Mapping[str, int], rows: Mapping[str, int], names: Sequence[str]
    ) -> float:
        """Bytes that a device reads and writes beside its products, a step.

        A layer's norms, sums, rotation and gate go over its activations forward, again, and twice
        backward; what is kept is written, cut out, and read; AdamW and its like read four numbers a
        parameter and write three, and each microbatch adds to its gradients.
        """
        heads = sum(rows[name] for name in self.sizes.features if not name.startswith("mlp"))
        once = 10 * rows["residual"] + 2 * heads + 3 * rows["wide"]
        layer = 4 * (once + sum(rows[name] for name in names))
        update = 7 + 3 * (run.microbatches if run.microbatches > 1 else 0)
        state = update * FP32 * self.sizes.parameters / (mesh["fsdp"] * mesh["tensor"])
        return run.microbatches * run.model.layers * layer + state


def pairs(run: Run, tile: int) -> float:
    """FLOPs a token of one product of attention's in all layers, in tiles that the masks let through."""
    if not isinstance(run.model, Decoder):
        return 0.0
    shares = [kernels.visited(mask, run.seq_len, tile) for mask in run.model.masks]
    return run.model.attention_flops(run.seq_len) / 6 * sum(shares) / len(shares)


def again(size: Sizes, model: Architecture, names: Sequence[str]) -> int:
    """FLOPs a token of products that are done twice where only these activations are kept.

    What comes from the stream is one product away from it, and so is the stream behind attention.
    """
    made = [n for name, n in size.features.items() if name not in ("attention", *names)]
    behind = size.features.get("attention", 0)
    return 2 * model.layers * model.d_model * (sum(made) + behind)
