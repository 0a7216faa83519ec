"""SIGTERM and Ctrl-C: noted when they come, acted upon between steps, on all processes at the same one."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax

Interrupted = Callable[[int], int]


@contextlib.contextmanager
def interruptions() -> Iterator[Interrupted]:
    """Inside, SIGTERM and the first Ctrl-C stop nothing: the function says, after a step, whether one came.

    It gives the signal's number, or 0. A second Ctrl-C stops at once, and saves nothing.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def together(step: int) -> int:
        # Processes get the signal at different steps, or only one of them does: JAX's preemption
        # service makes them agree on a step that none has passed.
        from jax.experimental import multihost_utils

        if not noted and multihost_utils.reached_preemption_sync_point(step):
            noted.append(signal.SIGTERM)
        return noted[0] if noted else 0

    if jax.process_count() > 1:
        yield together
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda step: noted[0] if noted else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
