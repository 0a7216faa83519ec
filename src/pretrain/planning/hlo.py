"""Reading an optimised program: computations, instructions, trip counts, shapes, products.

The text is what `jax.stages.Compiled.as_text` gives. It is scheduled: the order of instructions in a
computation is the order in which they run.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Computations that a SparseCore runs, beside the TensorCore, say so behind their last line.
_END = re.compile(r'^\}(, execution_thread="\w+")?$')
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_OPCODE = re.compile(r"(?:^|[\s)\]}])([a-z][a-z0-9\-]*)\(")
# Of a dot, and in the configuration of a call of cuBLAS.
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\s*\[)([\d,"\s]*)[\]}]')
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = shape opcode(operands), rest`."""

    name: str
    shape: str  # with layouts, "(bf16[4,8]{1,0}, s32[])" for a tuple
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def op_name(self) -> str:
        """Of the operation in the model that it came from: "jit(train_step)/.../dot_general"."""
        return self._found(r'op_name="([^"]*)"') or ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        return int(self._found(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def channel(self) -> str | None:
        """What the start, the steps and the end of one collective share."""
        return self._found(r"\bchannel_id=(\d+)")

    @property
    def target(self) -> str | None:
        """Of a custom call."""
        return self._found(r'custom_call_target="([^"]*)"')

    @property
    def calls(self) -> str | None:
        """The computation that a fusion or a call runs."""
        return self._found(r"\b(?:calls|to_apply)=%?([\w.\-]+)")

    @property
    def body(self) -> tuple[str, str] | None:
        """Condition and body of a loop."""
        condition, body = self._found(r"condition=%?([\w.\-]+)"), self._found(r"body=%?([\w.\-]+)")
        return (condition, body) if condition and body else None

    @property
    def value(self) -> int | None:
        """Of an integer constant."""
        number = re.match(r"\((-?\d+)\)", self.rest) if self.opcode == "constant" else None
        return int(number[1]) if number and re.match(r"[su]\d+\[\]", self.shape) else None

    @property
    def index(self) -> int:
        """Of the part of a tuple that is taken."""
        return int(self._found(r"\bindex=(\d+)") or 0)

    @property
    def bytes(self) -> int:
        """Of what it gives, all parts of a tuple together."""
        return sum(math.prod(dims) * BYTES[kind] for kind, dims in shapes(self.shape))

    def _found(self, pattern: str) -> str | None:
        match = re.search(pattern, self.rest)
        return match[1] if match else None


class Module:
    """A compiled program as text, taken apart."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, tuple[Instruction, ...]] = {}
        self.entry = ""
        self.header = text[: text.find("\n")]
        for name, entry, lines in _blocks(text):
            self.computations[name] = tuple(filter(None, map(parsed, lines)))
            self.entry = name if entry else self.entry

    def instructions(self, computation: str) -> tuple[Instruction, ...]:
        """In the order of the schedule."""
        return self.computations[computation]

    def within(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of the computations that a fusion is made of, nested ones too."""
        for inner in self.computations.get(instruction.calls or "", ()):
            yield inner
            if inner.opcode == "fusion":
                yield from self.within(inner)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: to the constant that its condition compares a counter with, in steps.

        The counter of a windowed product goes by two. Raises ValueError where the condition is
        anything else.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        assert loop.body is not None
        condition, body = (self.computations[name] for name in loop.body)
        inside = [*condition, *(inner for each in condition for inner in self.within(each))]
        limits = [i.value for i in inside if i.value is not None]
        counters = [i.index for i in condition if i.opcode == "get-tuple-element"]
        if len(limits) != 1 or len(counters) != 1:
            raise ValueError(f"the condition of the loop {loop.name} is no count to a constant")
        return -(-limits[0] // self._step(body, body[-1].operands[counters[0]]))

    def _step(self, body: tuple[Instruction, ...], name: str) -> int:
        """What is added to the counter that a body gives back under this name; 1 unless it says.

        A body that was unrolled adds more than once.
        """
        named, step = {i.name: i for i in body}, 0
        while name in named and named[name].operands:
            last = named[name]
            around = self.computations.get(last.calls or "", body)
            made = around[-1] if last.opcode == "fusion" else last
            constants = {i.name: i.value for i in around if i.value is not None}
            added = [constants[o] for o in made.operands if o in constants and made.opcode == "add"]
            if not added and made.opcode != "copy":
                break
            step += sum(added)
            name = next((o for o in last.operands if o not in constants), "")
        return step or 1

    def flops(self, instruction: Instruction) -> int:
        """Of the products in an instruction, run once."""
        inside = [instruction, *self.within(instruction)]
        return sum(product_flops(each, self._shapes) for each in inside)

    def shape_of(self, name: str) -> str:
        """Of what an instruction of that name gives."""
        return self._shapes[name]

    @functools.cached_property
    def _shapes(self) -> Mapping[str, str]:
        return {i.name: i.shape for each in self.computations.values() for i in each}


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Name, whether it is the entry, and instructions of each computation; lines made whole."""
    name, entry, lines = "", False, list[str]()
    for line in text.splitlines():
        head = _COMPUTATION.match(line) if not line.startswith(" ") else None
        if head:
            name, entry, lines = head[2], bool(head[1]), []
        elif name and _END.match(line):
            yield name, entry, lines
            name = ""
        elif name and _INSTRUCTION.match(line):
            lines.append(line)
        elif name and lines:
            lines[-1] += line  # kernels have metadata with line breaks in it


def parsed(line: str) -> Instruction | None:
    """An instruction from its text; None where it is none."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    name, right = match[1], match[2]
    end = _closing(right, 0) if right.startswith("(") else 0
    opcode = _OPCODE.search(right, end)
    if opcode is None:
        return None
    first = opcode.end()
    last = _closing(right, first - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", right[first:last]))
    if opcode[1] == "constant":
        last = first - 1  # its value is no operand
    return Instruction(name, right[: opcode.start(1)].strip(), opcode[1], operands, right[last:])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at + 1
    return len(text)


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and dims of each array in a shape."""
    found = _SHAPE.findall(text)
    return [(k, tuple(map(int, filter(None, d.split(","))))) for k, d in found if k in BYTES]


def product_flops(instruction: Instruction, shape_of: Mapping[str, str]) -> int:
    """Two for each multiplication of a convolution, a dot or a call of cuBLAS; 0 for anything else.

    TPU programs write all products as convolutions, some with windows that lie mostly in padding.
    """
    if instruction.opcode not in ("convolution", "dot") and not is_cublas(instruction):
        return 0
    out = math.prod(shapes(instruction.shape)[0][1])
    lhs, rhs = (shapes(shape_of[name])[0][1] for name in instruction.operands[:2])
    if instruction.opcode != "convolution":
        match = _CONTRACTED.search(instruction.rest)
        contracted = re.findall(r"\d+", match[1]) if match else []
        return 2 * out * math.prod(lhs[int(d)] for d in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels is not None
    given = dict(zip(labels[1], lhs, strict=True))
    kernel = dict(zip(labels[2], rhs, strict=True))
    made = dict(zip(labels[3], shapes(instruction.shape)[0][1], strict=True))
    taps = 1
    for number, name in enumerate(sorted(filter(str.isdigit, kernel))):
        taps *= _taps(given[name], kernel[name], made[name], _window(instruction.rest, number))
    return 2 * made["b"] * made["f"] * kernel["i"] * taps


def is_cublas(instruction: Instruction) -> bool:
    """Whether it is a product that is left to NVIDIA's library, as GPU programs leave most."""
    return (instruction.target or "").startswith("__cublas")


def _window(rest: str, dim: int) -> dict[str, str]:
    """stride, pad, lhs_dilate, rhs_dilate of one dim of a convolution's window."""
    match = re.search(r"window=\{([^}]*)\}", rest)
    parts = dict(item.split("=") for item in match[1].split()) if match else {}
    return {name: value.split("x")[dim] for name, value in parts.items()}


@functools.cache
def _count(size: int, kernel: int, made: int, stride: int, pad: int, left: int, right: int) -> int:
    at = np.arange(made)[:, None] * stride + np.arange(kernel)[None, :] * right - pad
    return int(((at >= 0) & (at <= (size - 1) * left) & (at % left == 0)).sum())


def _taps(size: int, kernel: int, made: int, window: Mapping[str, str]) -> int:
    """Pairs of output and kernel positions that meet an input and no padding."""
    stride, pad = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    left, right = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    return _count(size, kernel, made, stride, pad, left, right)
