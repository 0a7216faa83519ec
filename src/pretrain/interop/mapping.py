"""Tables of tensors: where each of our parameters lies in a Hugging Face checkpoint.

A row says one thing once, and both directions follow from it, so that what is exported is what
would be imported.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Entries at ... at + count - 1 of the axis `c` of an equation, which has `of` entries."""

    at: int
    of: int
    count: int = 1


@dataclass(frozen=True)
class Tensor:
    """One of our tensors, and the tensor of theirs that holds it.

    `equation` is theirs -> ours, by axes: torch keeps a query matrix transposed and its heads
    merged, so it is "(N H) D -> D N H". Sizes follow from the shape of ours; a number is an axis of
    that size; the axis `c` is cut to `part`, so the keys of a fused matrix are
    "(N c H) D -> D N H" with `Part(1, of=3)`. An axis that is only on the left must have one entry.

    Where `theirs` has "{l}", there is one for each layer and `ours` is a name within a block,
    "attention/query/kernel". V is the vocabulary, which is padded in ours and not in theirs.
    """

    ours: str
    theirs: str
    equation: str
    part: Part | None = None

    def theirs_shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """Of theirs, for the shape of ours."""
        left, _ = _sides(self.equation)
        sizes = self._sizes(ours)
        return tuple(math.prod(sizes[axis] for axis in group) for group in left)

    def view(self, theirs: np.ndarray, ours: Sequence[int]) -> np.ndarray:
        """The entries of theirs that are ours, in the order of ours, its merged axes apart.

        A view: reading a part of it reads that part, and what is written to it is in `theirs`.
        """
        (left, right), sizes = _sides(self.equation), self._sizes(ours)
        axes = [axis for group in left for axis in group]
        x = theirs.reshape([sizes[axis] for axis in axes])
        if self.part is not None:
            at = self.part.at
            cut = slice(at, at + self.part.count)
            x = x[tuple(cut if axis == "c" else slice(None) for axis in axes)]
        kept = [axis for group in right for axis in group]
        x = x.squeeze(tuple(i for i, axis in enumerate(axes) if axis not in kept))
        axes = [axis for axis in axes if axis in kept]
        return x.transpose([axes.index(axis) for axis in kept])

    def bare(self, ours: Sequence[int], vocab: int) -> tuple[int, ...]:
        """The shape of ours without the padding of the vocabulary."""
        _, right = _sides(self.equation)
        return tuple(vocab if g == ("V",) else n for g, n in zip(right, ours, strict=True))

    def _sizes(self, ours: Sequence[int]) -> dict[str, int]:
        """Entries of every axis of theirs."""
        left, right = _sides(self.equation)
        axes = {axis for group in (*left, *right) for axis in group}
        sizes = {axis: int(axis) for axis in axes if axis.isdecimal()}
        if self.part is not None:
            sizes["c"] = self.part.count
        for group, size in zip(right, ours, strict=True):
            *known, last = sorted(group, key=lambda axis: axis in sizes, reverse=True)
            assert all(axis in sizes for axis in known), f"{self.equation} leaves {group} open"
            others = math.prod(sizes[axis] for axis in known)
            fits = size % others == 0 and sizes.setdefault(last, size // others) * others == size
            assert fits, f"{self.equation} of {self.ours} does not fit {tuple(ours)}"
        return sizes if self.part is None else sizes | {"c": self.part.of}


@functools.cache
def _sides(equation: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """The axes of both sides of an equation: "(N H) D -> D N H" as (("N", "H"), ("D",)), ..."""

    def groups(side: str) -> tuple[tuple[str, ...], ...]:
        found = re.findall(r"\(([^)]*)\)|([^\s()]+)", side)
        return tuple(tuple((merged or single).split()) for merged, single in found)

    left, right = equation.split("->")
    return groups(left), groups(right)


@dataclass(frozen=True)
class Place:
    """A row of the table for one of our tensors, or one layer of it."""

    row: Tensor
    ours: str  # its name among the parameters
    layer: int | None  # which entry of its leading axis, None where it has none
    theirs: str
    shape: tuple[int, ...]  # of ours, without the leading axis

    def read(self, theirs: np.ndarray, vocab: int, index: tuple[slice, ...]) -> np.ndarray:
        """Entries of ours, in fp32, from theirs; padding is 0."""
        bare = self.row.bare(self.shape, vocab)
        x = self.row.view(theirs, bare).reshape(bare)
        if bare != self.shape:
            x = np.pad(x, [(0, n - m) for n, m in zip(self.shape, bare, strict=True)])
        return x[index].astype(np.float32)

    def write(self, ours: np.ndarray, vocab: int, theirs: np.ndarray) -> None:
        """Put ours where it belongs in theirs."""
        bare = self.row.bare(self.shape, vocab)
        view = self.row.view(theirs, bare)
        view[...] = ours[tuple(slice(n) for n in bare)].reshape(view.shape)

    def expected(self, vocab: int) -> tuple[int, ...]:
        """The shape that theirs must have."""
        return self.row.theirs_shape(self.row.bare(self.shape, vocab))


_BLOCK = re.compile(r"stack/blocks/(?:kinds/(\d+)/)?.+")  # see `models.stack`


def places(
    table: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]], layers: int
) -> list[Place]:
    """Where every one of our parameters (name to shape) lies in theirs, in the order of the table.

    Of a stack of P kinds of blocks by turns, layer l is entry l // P of kind l % P.
    """
    kinds = {match[1] for name in shapes if (match := _BLOCK.fullmatch(name))}
    found = []
    for row in table:
        for layer in range(layers) if "{l}" in row.theirs else [None]:
            ours, entry = row.ours, None
            if layer is not None:
                entry, kind = divmod(layer, len(kinds))
                block = "stack/blocks" if kinds == {None} else f"stack/blocks/kinds/{kind}"
                ours = f"{block}/{row.ours}"
            shape = shapes[ours] if layer is None else shapes[ours][1:]
            theirs = row.theirs.replace("{l}", str(layer))
            found.append(Place(row, ours, entry, theirs, shape))
    left = shapes.keys() - {place.ours for place in found}
    assert not left, f"no row of the table is for {sorted(left)}"
    return found
