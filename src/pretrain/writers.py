"""Where the lines of a log go: metrics.jsonl, TensorBoard; a terminal is another, in `progress`.

Files are written without a buffer and without a thread. So a line is visible at once (`tail -f`),
and a full disk is an error at the line that did not fit. The writer threads of TensorBoard
libraries die of it, and the training loop then waits for ever for room in their queue.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pretrain.config import Mistake
from pretrain.rundir import RunDirectory, absolute, cannot_write

Line = Mapping[str, float]
"""One point of every curve: the step, and numbers by name."""


class Writer(Protocol):
    """Something that lines go to."""

    def write(self, line: Line) -> None:
        """One line; its "step" never decreases."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Some text for people."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


def open_writers(directory: RunDirectory, process: int, start: int, config: str) -> list[Writer]:
    """The writers of a run that goes on after step `start`; none unless `process` is 0."""
    if process != 0:
        return []
    return [Jsonl(directory.metrics, start), TensorBoard(directory.tensorboard, start, config)]


class Appended:
    """A file that only grows, unbuffered. Raises Mistake where it cannot be written."""

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self._path = absolute(path)
        with self._mistakes():
            self._file = Path(self._path).open("ab", buffering=0)  # noqa: SIM115 (`close` closes it)

    def truncate(self, length: int) -> None:
        """Drops what is behind the first `length` bytes."""
        with self._mistakes():
            self._file.truncate(length)

    def write(self, data: bytes) -> None:
        """All of `data`; what did fit of it stays where the disk fills up."""
        with self._mistakes():
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextlib.contextmanager
    def _mistakes(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path, error) from error


class Jsonl:
    """`metrics.jsonl`: one strict JSON object a line.

    JSON has no NaN and no infinity: such a value is written as null, and the key "nonfinite" maps
    its name to "nan", "inf" or "-inf".
    """

    def __init__(self, path: os.PathLike[str] | str, start: int) -> None:
        """Lines past step `start`, which an earlier process wrote, are dropped: one curve a file.

        Raises Mistake where a line to be kept is damaged.
        """
        kept = bytes_until(Path(absolute(path)), start)
        self._file = Appended(path)
        self._file.truncate(kept)

    def write(self, line: Line) -> None:
        """Appends the line."""
        odd = {name: str(float(x)) for name, x in line.items() if not math.isfinite(x)}
        strict: dict[str, Any] = {name: None if name in odd else x for name, x in line.items()}
        if odd:
            strict["nonfinite"] = odd
        self._file.write(json.dumps(strict, allow_nan=False).encode() + b"\n")

    def text(self, step: int, name: str, text: str) -> None:
        """Nothing: the file holds numbers only."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def bytes_until(path: Path, start: int) -> int:
    """The length of a metrics.jsonl as far as its last line of step `start`; 0 for a new run."""
    if start == 0 or not path.exists():
        return 0
    length = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # the run died while it wrote this line
                break
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                raise Mistake(
                    f"{path}, line {number} is no line of metrics: delete that line, or move the "
                    "file away and let the curve begin here."
                ) from None
            if step > start:
                break
            length += len(line)
    return length


class TensorBoard:
    """`tensorboard/`: the same numbers at the same steps, in the groups train, eval and throughput.

    The library is imported, and the file opened, when the first line is written, which is after the
    first step.
    """

    def __init__(self, directory: os.PathLike[str] | str, start: int, config: str) -> None:
        """`config` is shown as text. Curves of an earlier process end at step `start`."""
        self._directory = absolute(directory)
        self._start, self._config = start, config
        self._file: Appended | None = None

    def write(self, line: Line) -> None:
        """One scalar for each number of the line."""
        numbers = {tag(name): x for name, x in line.items() if name != "step"}
        values = [{"tag": name, "simple_value": x} for name, x in numbers.items()]
        self._add(step=int(line["step"]), summary={"value": values})

    def text(self, step: int, name: str, text: str) -> None:
        """Text as it is: TensorBoard renders Markdown, and lines that are indented are literal."""
        literal = "\n".join(f"    {line}" for line in text.splitlines())
        value = {
            "tag": f"{name}/text_summary",
            "metadata": {"plugin_data": {"plugin_name": "text"}},
            "tensor": {
                "dtype": "DT_STRING",
                "string_val": [literal.encode(errors="replace")],
                "tensor_shape": {"dim": [{"size": 1}]},
            },
        }
        self._add(step=step, summary={"value": [value]})

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            self._file = self._open()
            self._add(file_version="brain.Event:2")
            # TensorBoard forgets the points of earlier files from this step on.
            self._add(step=self._start and self._start + 1, session_log={"status": "START"})
            self.text(self._start, "config", self._config)
        RecordWriter(self._file).write(Event(wall_time=time.time(), **event).SerializeToString())

    def _open(self) -> Appended:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._directory, error) from error
        return Appended(self._directory / f"events.out.tfevents.{time.time_ns()}")


RATES = (
    "tokens", "sequences", "seconds", "goodput", "step_seconds", "data_wait_seconds",
    "tokens_per_second", "mfu", "host_memory_bytes", "device_memory_bytes",
)  # fmt: skip


def tag(name: str) -> str:
    """The name of a number in TensorBoard: "train/loss", "eval/loss", "throughput/mfu"."""
    for group in ("eval", "forecast"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"{'throughput' if name in RATES else 'train'}/{name}"
