"""SIGTERM and Ctrl-C: they end a start at once, and training between two steps, with a checkpoint."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

Interrupted = Callable[[int], int]


class Stopped(BaseException):
    """A signal came while there was nothing to save. Its text is the signal's name."""

    def __init__(self, number: int) -> None:
        super().__init__(named(number))
        self.number = number


def named(number: int) -> str:
    """The name of a signal: SIGTERM for 15."""
    return signal.Signals(number).name


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C raise Stopped in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = _handle(stop, signal.SIGINT, signal.SIGTERM)
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def interruptions() -> Iterator[Interrupted]:
    """Inside, a signal ends nothing: the function says, called after each step, whether one came.

    It gives the signal's number or 0, on all processes of a run alike. After the first signal
    Ctrl-C ends the process at once, whatever it is doing, and that stays so behind the block.
    """
    import jax  # a signal during this import should find `stoppable` at work already

    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        text = f"{named(number)}: saving after this step; Ctrl-C now ends the process at once.\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # print might be what the signal interrupted

    def pass_on(number: int, frame: FrameType | None) -> None:
        note(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)

    alone = jax.process_count() == 1
    # With several processes SIGTERM is left to JAX's preemption service.
    before = _handle(note, signal.SIGINT, signal.SIGTERM) if alone else _handle(pass_on, signal.SIGINT)
    try:
        yield (lambda step: noted[0] if noted else 0) if alone else _together(noted)
    finally:
        if not noted:
            _restore(before)


def _together(noted: list[int]) -> Interrupted:
    """Whether any process was told to stop; all of them learn it after the same step.

    The signal reaches processes during different steps, or only one of them. JAX's preemption service
    makes them agree on a step that none has finished.
    """
    from jax.experimental import multihost_utils

    agreed: list[int] = []

    def interrupted(step: int) -> int:
        if not agreed and multihost_utils.reached_preemption_sync_point(step):
            agreed.append(noted[0] if noted else signal.SIGTERM)
        return agreed[0] if agreed else 0

    return interrupted


def _handle(handler: Callable[[int, FrameType | None], None], *numbers: int) -> dict[int, Any]:
    """Install a handler; the handlers before."""
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
