"""The safetensors format: named tensors in files that nothing is ever run from.

A file is the length of a header (8 bytes, little-endian), the header (JSON: name to dtype, shape and
place) and the tensors' bytes. Reading it here, and not through the package of that name, gives
bfloat16 in numpy and views from which only the pages that a device needs are read; writing it here
never holds more than one tensor.

A directory has one file `model.safetensors`, or several and an index that says which tensor is where.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pretrain.config import Mistake

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LONGEST_HEADER = 100_000_000  # bytes, as the format says


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    def read(self) -> np.ndarray:
        """A view of the file: what is read of it is what is indexed, and it goes with the array."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def entries(directory: Path) -> dict[str, Entry]:
    """Every tensor of a directory by name. Raises Mistake where files are missing or damaged."""
    found: dict[str, Entry] = {}
    for file in _files(directory):
        for name, entry in _header(file):
            if name in found:
                raise Mistake(f"{file} and {found[name].file} both hold the tensor {name}.")
            found[name] = entry
    for name, shard in _index(directory).items():
        if name not in found or found[name].file.name != shard:
            raise Mistake(
                f"{directory / INDEX} says that {shard} holds the tensor {name}, and it does not."
            )
    return found


def _index(directory: Path) -> dict[str, str]:
    path = directory / INDEX
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text())["weight_map"]
        return {str(name): str(file) for name, file in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{path} is not an index of safetensors files ({error}).") from error


def _files(directory: Path) -> list[Path]:
    shards = sorted(set(_index(directory).values()))
    for name in shards:
        if Path(name).name != name:
            raise Mistake(f"{directory / INDEX} names the file {name}, which is outside of it.")
        if not (directory / name).exists():
            raise Mistake(f"{directory / INDEX} names the file {name}, which is missing.")
    if shards:
        return [directory / name for name in shards]
    if (directory / WHOLE).exists():
        return [directory / WHOLE]
    pickles = [*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    why = (
        f"; {pickles[0].name} is a pickle, which can run any code when it is opened: convert it with "
        "`save_pretrained(..., safe_serialization=True)` where you trust it"
        if pickles
        else ""
    )
    raise Mistake(f"{directory} has neither {WHOLE} nor {INDEX}{why}.")


def _header(file: Path) -> Iterator[tuple[str, Entry]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size - 8, _LONGEST_HEADER):
                raise ValueError("it is cut short, or no safetensors file")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        tensors = [(name, _entry(file, 8 + length, size, e)) for name, e in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{file} cannot be read ({error}): bring it back from its source.") from error
    yield from tensors


def _entry(file: Path, start: int, size: int, described: Mapping[str, Any]) -> Entry:
    if described["dtype"] not in DTYPES:
        raise ValueError(f"it has the dtype {described['dtype']}; known are {', '.join(DTYPES)}")
    dtype, shape = DTYPES[described["dtype"]], tuple(int(n) for n in described["shape"])
    begin, end = (int(n) for n in described["data_offsets"])
    if min(shape, default=1) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's place does not fit its shape")
    if start + end > size:
        raise ValueError("it is cut short")
    return Entry(file, dtype, shape, start + begin)


def write(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensor: Callable[[str], np.ndarray],
    shard_bytes: int,
) -> None:
    """Write tensors of one dtype, asking `tensor(name)` for each when its turn comes.

    A file has `shard_bytes` of tensors at most, one tensor at least; several files get an index.
    """
    bytes_of = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = list(_shards(bytes_of, shard_bytes))
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = [WHOLE] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        _write_file(directory / file, {name: shapes[name] for name in names}, dtype, tensor)
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(bytes_of.values())}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(bytes_of: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in order, in groups of `most` bytes."""
    group: list[str] = []
    held = 0
    for name, size in bytes_of.items():
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _write_file(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensor: Callable[[str], np.ndarray],
) -> None:
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = np.asarray(tensor(name), dtype, order="C")
            assert values.shape == shape, name
            values.tofile(opened)
