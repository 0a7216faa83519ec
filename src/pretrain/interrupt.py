"""SIGTERM, Ctrl-C, a closed terminal: they end a start at once, and training with a checkpoint."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

Interrupted = Callable[[int], int]


def named(number: int) -> str:
    """The name of a signal: SIGTERM for 15."""
    return signal.Signals(number).name


@contextlib.contextmanager
def stoppable(undo: Callable[[], None]) -> Iterator[None]:
    """Inside, until `interruptions`, a signal calls `undo` and ends the process.

    The exit status is 128 + the signal's number. At the end the handlers before are back.
    """

    # Not by an exception: one that a handler raises can vanish, in a callback of the garbage
    # collector for one, and would have to wait for the compiler.
    def stop(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):
            undo()
        _tell(f"pretrain.launch: stopped by {named(number)} before training began.")
        os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in _signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptions() -> Interrupted:
    """From now on a signal ends nothing: the function says, called after each step, whether one came.

    It gives the signal's number or 0, on all processes of a run alike. After the first signal
    Ctrl-C ends the process at once, whatever it is doing.
    """
    import jax  # here, so that a signal during this import finds `stoppable` at work

    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _tell(f"{named(number)}: the run ends when its state is saved; Ctrl-C now ends it at once.")

    def pass_on(number: int, frame: FrameType | None) -> None:
        note(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_count() == 1:
        for number in _signals():
            signal.signal(number, note)
        return lambda step: noted[0] if noted else 0
    # JAX's preemption service took SIGTERM when the processes joined.
    for number in _signals() - {signal.SIGTERM}:
        signal.signal(number, pass_on)
    return _together(noted)


def _together(noted: list[int]) -> Interrupted:
    """Whether any process was told to stop; all of them learn it after the same step.

    The signal reaches processes during different steps, or only one of them. The preemption service
    makes them agree on a step that none has finished.
    """
    from jax.experimental import multihost_utils

    agreed: list[int] = []

    def interrupted(step: int) -> int:
        if not agreed and multihost_utils.reached_preemption_sync_point(step):
            agreed.append(noted[0] if noted else signal.SIGTERM)
        return agreed[0] if agreed else 0

    return interrupted


def _signals() -> set[signal.Signals]:
    """Those that stop a run: not the closing of a terminal where that is ignored, as under nohup."""
    stopping = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return stopping - {signal.SIGHUP} if ignored else stopping


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())  # print might be what the signal interrupted
