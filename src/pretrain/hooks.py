"""What happens between steps. The loop calls each hook after each step; the list is the order.

A hook gets the number of the step that was just dispatched, and the state that it returns, which
may not be computed yet. What depends on a step's numbers is a watch of the log instead
(`metrics.Watch`): it gets them, one step late, without making anyone wait.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from pretrain.config import Mistake, Node
from pretrain.metrics import Log

Hook = Callable[[int, Any], None]


def every(n: int, hook: Hook) -> Hook:
    """`hook` after each step that n divides."""
    return lambda step, state: hook(step, state) if step % n == 0 else None


def aside(log: Log, hook: Hook) -> Hook:
    """`hook` with the training clock stopped: evaluation, checkpoints, samples.

    The step's line is written before the hook runs, so no checkpoint holds a step without a line.
    """

    def run(step: int, state: Any) -> None:
        with log.aside():
            hook(step, state)

    return run


class NonFinite(Mistake):
    """Training no longer moves: step after step is skipped because it is not finite."""


class StopOnNonFinite:
    """A watch that ends the run when `limit` steps in a row were skipped."""

    def __init__(self, limit: int = 10) -> None:
        self._limit = limit

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Raises NonFinite at the last of so many steps."""
        row = int(numbers["skipped_in_a_row"])
        if row < self._limit:
            return
        names = ("loss", "grad_norm", "update_norm")
        odd = [f"{name} {numbers[name]}" for name in names if not math.isfinite(numbers[name])]
        first = step - row + 1
        begin = f"go on from a checkpoint before step {first}" if first > 1 else "start again"
        raise NonFinite(
            f"{row} steps in a row, up to step {step}, were not finite ({', '.join(odd)}) and "
            f"changed nothing: {begin} with a lower optim.peak_lr, a longer "
            "optim.schedule.warmup or a smaller optim.clip_norm, and look at the data of these steps."
        )


class Profile(Node):
    """Which steps the JAX profiler traces."""

    first: int | None = None  # first step of the trace, 2 or later; none is traced without it
    steps: int = 3  # how many steps are traced

    def check(self, run_steps: int) -> None:
        """Raises Mistake where the traced steps are not all within a run of `run_steps`."""
        if self.steps < 1:
            raise Mistake(f"profile.steps is {self.steps}: make it 1 or more.")
        if self.first is None:
            return
        if self.first < 2:
            raise Mistake(f"profile.first is {self.first}: make it 2 or more, as step 1 compiles.")
        if self.first + self.steps - 1 > run_steps:
            raise Mistake(
                f"profile.first is {self.first} and profile.steps is {self.steps}, but the run "
                f"ends at step {run_steps}: make one of the two smaller, or steps larger."
            )

    def hooks(self, directory: os.PathLike[str] | str) -> list[Hook]:
        """The hook that traces into `directory`, if any step is to be traced."""
        return [] if self.first is None else [Trace(directory, self.first, self.steps)]


class Trace:
    """A hook that traces steps first ... first + steps - 1 with the JAX profiler.

    A run that ends in between leaves no trace.
    """

    def __init__(self, directory: os.PathLike[str] | str, first: int, steps: int) -> None:
        self._directory = os.fspath(directory)
        self._steps = range(first, first + steps)
        self._tracing = False

    def __call__(self, step: int, state: Any) -> None:
        """Starts before the first step, or later where a run resumes later; ends after the last."""
        if self._tracing and step >= self._steps[-1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._tracing = False
        elif not self._tracing and step + 1 in self._steps:
            jax.block_until_ready(state)  # so that no step before is in the trace
            jax.profiler.start_trace(self._directory)
            self._tracing = True
