"""Memory of a compiled step on one device, and what the compiler says where it has too little."""

import math
import re
from dataclasses import dataclass, replace

from pretrain.describe import activations, bytes_of
from pretrain.models.model import Decoder
from pretrain.models.stack import Recompute
from pretrain.planning.hlo import BYTES, Module, shapes
from pretrain.program import Program
from pretrain.run import Run

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Rows of `describe.activations` that have the size of what a block calls so.
ROWS = {
    "query": "queries", "key": "keys", "value": "values", "attention": "queries",
    "mlp_gate": "feed-forward", "mlp_up": "feed-forward",
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. The first three are from shapes, the last two from the compiler."""

    parameters: int  # fp32
    optimizer: int
    activations: int | None  # kept from the forward for the backward pass; None where all are
    temporaries: int  # all that a step needs beside its arguments: activations and gradients too
    peak: int  # arguments and temporaries


@dataclass(frozen=True)
class Buffer:
    """One of the largest allocations of a program that does not fit."""

    bytes: int
    shape: str
    op_name: str  # of the operation that makes it
    tensor: str = ""  # what the model calls it, "" for a temporary without a name


@dataclass(frozen=True)
class Excess:
    """A program that does not fit."""

    used: int
    limit: int
    largest: tuple[Buffer, ...]

    @property
    def over(self) -> int:
        """Bytes too many."""
        return self.used - self.limit


def measured(run: Run, program: Program, arguments: int, temporaries: int) -> Memory:
    """From what the compiler counted."""
    return Memory(
        parameters=bytes_of(program.state.params), optimizer=bytes_of(program.state.optimizer),
        activations=kept(run), temporaries=temporaries, peak=arguments + temporaries,
    )  # fmt: skip


def kept(run: Run) -> int | None:
    """Bytes of what a device keeps of all blocks for the backward pass, on the current mesh."""
    remat = run.compute.remat
    if not isinstance(remat, Recompute):
        return None
    sizes, names = {row.name: row.bytes for row in activations(run)}, named(run)
    return run.model.layers * (sizes["residual stream"] + sum(names[name] for name in remat.save))


def named(run: Run) -> dict[str, int]:
    """Bytes of one layer's activations by the names that blocks have for them, on the current mesh."""
    sizes = {row.name: row.bytes for row in activations(run)}
    if not isinstance(run.model, Decoder):  # its channels are split as those of a feed-forward
        channels = sizes["feed-forward"] * run.model.d_model // run.model.d_ff
        return {name: sizes.get(row, channels) for name, row in ROWS.items()}
    return {name: sizes[row] for name, row in ROWS.items()}


def excess(message: str) -> Excess | None:
    """What the compiler's message says; None where it is about something else."""
    # Much too large a program is refused before its buffers are placed, in other words.
    used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message
    )
    if used is None:
        return None
    found = re.findall(r"Size: ([\d.]+)([KMGT]?)\n(.*?)(?:={10,}|\Z)", message, re.DOTALL)
    buffers = [
        Buffer(size(number, unit), _field("Shape", text), _operator(text))
        for number, unit, text in found
    ]
    return Excess(size(used[1], used[2]), size(used[3], used[4]), tuple(buffers))


def size(number: str, unit: str) -> int:
    """Bytes of "30.75", "G"."""
    return math.ceil(float(number) * UNITS[unit])


def _field(name: str, text: str) -> str:
    match = re.search(rf"{name}: (.*)", text)
    return match[1].strip() if match else ""


def _operator(text: str) -> str:
    match = re.search(r'op_name="([^"]*)"', text)
    return match[1] if match else _field("XLA label", text)


def beyond(used: int, limit: int, text: str) -> Excess | None:
    """What a program that the compiler let through has too much by its own count; None where nothing."""
    if used <= limit:
        return None
    found: dict[str, Buffer] = {}
    for computation in Module(text).computations.values():
        for each in computation:
            for kind, dims in shapes(each.shape):
                name = f"{kind}[{','.join(map(str, dims))}]"
                made = Buffer(math.prod(dims) * BYTES[kind], name, each.op_name)
                if name not in found or not found[name].op_name:
                    found[name] = made
    largest = sorted(found.values(), key=lambda buffer: -buffer.bytes)[:10]
    return Excess(used, limit, tuple(largest))


def tensors(run: Run, found: Excess) -> Excess:
    """The same, with what the model calls each buffer that is one of its activations."""
    rows = {row.name: row.bytes for row in activations(run)}
    stacked = {run.model.layers * n: f"{name}, all layers" for name, n in rows.items()}
    names = {n: f"{name}, one layer" for name, n in rows.items()} | stacked
    largest = tuple(
        replace(buffer, tensor=names.get(held(buffer.shape), "")) for buffer in found.largest
    )
    return replace(found, largest=largest)


def held(shape: str) -> int:
    """Bytes of an array's shape as text, without padding."""
    return sum(math.prod(dims) * BYTES[kind] for kind, dims in shapes(shape))
