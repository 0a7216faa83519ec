"""The log of a run: metrics fetched one step late, completed with rates, handed to the writers.

Keys of a line of training: step, loss, perplexity, bits_per_byte, z_loss, grad_norm, param_norm,
update_norm, learning_rate, skipped, skipped_in_a_row, valid_tokens (of the batch), and whatever
else the step returns; tokens, sequences, seconds, goodput, step_seconds, data_wait_seconds,
tokens_per_second and mfu from `Throughput`; host_memory_bytes and device_memory_bytes. A key whose
value is not known is left out.
"""

import contextlib
import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from pretrain.throughput import Throughput
from pretrain.writers import Writer

Watch = Callable[[int, Mapping[str, float]], None]
"""Called with each step's number and fetched metrics, logged or not; may raise to end the run."""


class Log:
    """Takes the metrics of each step as the step is dispatched, and reads those of the step before.

    So the host waits for a step only while the next one is already queued, and the device never
    waits for the host. The first step, the last, and each that `every` divides become lines. A
    process with no writers does all but write, so that every process stops at the same step.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        watches: Sequence[Watch],
        throughput: Throughput,
        *,
        steps: int,
        every: int,
        bytes_per_token: float,
        waited: Callable[[], float],
    ) -> None:
        """`waited()` is for how many seconds the loop had no data since it was last asked."""
        self._writers, self._watches, self._throughput = writers, watches, throughput
        self._steps, self._every = steps, every
        self._bytes_per_token, self._waited = bytes_per_token, waited
        self._pending: tuple[int, Mapping[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)
            if error is None:  # else the device may never finish the pending step
                self.flush()

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Step `step`, the first being 1, was dispatched: reads and logs the step before it."""
        self._throughput.dispatched(step)
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Waits for the step that was dispatched last, and logs it."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        numbers = {name: plain(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._throughput.finished(step, self._waited(), int(numbers["skipped_in_a_row"]))
        if step == 1 or step % self._every == 0 or step == self._steps:
            self._write(self._line(step, numbers))
        for watch in self._watches:
            watch(step, numbers)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Logs the step that was dispatched last; then the block is no training, for the rates."""
        self.flush()
        self._throughput.stop()
        try:
            yield
        finally:
            self._throughput.start()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """A line of its own, behind that of the step: an evaluation's eval_loss and so on."""
        self.flush()
        self._write({"step": step, **numbers})

    def text(self, step: int, name: str, text: str) -> None:
        """Some text for people, such as a sample of what the model writes."""
        for writer in self._writers:
            writer.text(step, name, text)

    def _write(self, line: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(line)

    def _line(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        loss = numbers["loss"]
        derived = {
            "perplexity": math.exp(loss) if loss < 700 else math.inf,  # exp(710) is no float
            "bits_per_byte": loss / math.log(2) / self._bytes_per_token,
            "valid_tokens": numbers["tokens"],
        }
        rates = self._throughput.take(step)  # its tokens are the run's, not the batch's
        return {"step": step, "loss": loss, **derived, **numbers, **rates, **memory()}


def plain(value: Any) -> float:
    """A scalar as Python's int or float; a float in the fewest digits that tell it from others."""
    scalar = np.asarray(value)[()]
    # By way of its text: 0.1 in float32 is 0.1 and not 0.10000000149011612.
    return int(scalar) if np.issubdtype(scalar.dtype, np.integer) else float(str(scalar))


def memory() -> dict[str, int]:
    """Peaks in bytes: of this process on the host; of its fullest device if the backend tells."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    device = {"device_memory_bytes": max(peaks)} if peaks else {}
    return {"host_memory_bytes": host, **device}
