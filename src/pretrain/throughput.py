"""Rates of a run: seconds a step, tokens a second, MFU, goodput."""

import time
from collections.abc import Callable

from pretrain.flops import mfu


class Throughput:
    """Times the steps of this process between the moments at which their results were known.

    Dispatch returns before the device is done, so the seconds of a step run from the moment that
    the result of the step before it was known to the moment that its own was. Not timed is a step
    during which one is compiled, the first of this process or of a batch size, nor whatever lies
    between `stop` and `start`.

    Goodput is the share of the wall time since the process started that went into timed steps,
    less those that were skipped because something was not finite, and less the loop's waits for
    data. Imports, compilation, restoring, evaluation and the blocking part of a checkpoint are
    outside it. The device may have been busy during part of a wait: it is a lower bound.
    """

    def __init__(
        self,
        *,
        sequences: Callable[[int], int],
        seq_len: int,
        flops_per_token: float,
        peak_flops: float | None,
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sequences(n)` is how many sequences the first n steps of the run take together.

        `peak_flops` is per second, of all devices together; None leaves MFU out. `started` is when
        the process started, by `clock`.
        """
        self._sequences, self._seq_len = sequences, seq_len
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._started, self._clock = started, clock
        self._since: float | None = None  # from when the next step is timed
        self._size: int | None = None  # sequences of the step dispatched last
        self._kept = 0.0
        self._reset()

    def dispatched(self, step: int) -> None:
        """Step `step` is on its way; a batch of another size than the last had to compile first."""
        size = self._batch(step)
        if size != self._size:
            self._size = size
            self.stop()

    def finished(self, step: int, waited: float, skipped: int) -> None:
        """The result of `step` is known now.

        `waited` is for how many of the seconds since the last call the loop had no data; `skipped`
        is 0 where the step was kept.
        """
        now = self._clock()
        if self._since is not None:
            seconds = now - self._since
            self._steps += 1
            self._trained += self._batch(step)
            self._seconds += seconds
            self._waited += waited
            self._kept += 0.0 if skipped else seconds - waited
        self._since = now

    def stop(self) -> None:
        """What follows is no training."""
        self._since = None

    def start(self) -> None:
        """What follows is training again."""
        self._since = self._clock()

    def take(self, step: int) -> dict[str, float]:
        """Totals after `step`, and rates over the steps that were timed since the last call.

        tokens, sequences: of the whole run so far. seconds: since the process started; goodput: of
        them. Where a step was timed: step_seconds and data_wait_seconds, means over steps;
        tokens_per_second; and mfu where the peak is known.
        """
        seen = self._sequences(step)
        elapsed = self._clock() - self._started
        rates: dict[str, float] = {
            "tokens": seen * self._seq_len,
            "sequences": seen,
            "seconds": elapsed,
            "goodput": self._kept / elapsed,
        }
        if self._steps:
            speed = self._trained * self._seq_len / self._seconds
            rates["step_seconds"] = self._seconds / self._steps
            rates["data_wait_seconds"] = self._waited / self._steps
            rates["tokens_per_second"] = speed
            if self._peak_flops is not None:
                rates["mfu"] = mfu(speed, self._flops_per_token, self._peak_flops)
        self._reset()
        return rates

    def _reset(self) -> None:
        self._steps = self._trained = 0
        self._seconds = self._waited = 0.0

    def _batch(self, step: int) -> int:
        return self._sequences(step) - self._sequences(step - 1)


def process_started() -> float:
    """When this process started, by `time.monotonic`; right to about a second."""
    import psutil

    return time.monotonic() - (time.time() - psutil.Process().create_time())
