"""What a person sees of a running run: a progress bar on a terminal, plain lines anywhere else."""

import datetime
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from pretrain.writers import Line, Writer

BRIEF = {
    "loss": "loss {:7.4f}",
    "tokens_per_second": "{:9,.0f} tokens/s",
    "left": "left {!s:>8}",
}
FULL = {
    "loss": "loss {:7.4f}",
    "bits_per_byte": "bits/byte {:6.4f}",
    "grad_norm": "grad {:8.3g}",
    "learning_rate": "lr {:8.2e}",
    "step_seconds": "{:8.3f} s/step",
    "tokens_per_second": "{:11,.0f} tokens/s",
    "left": "left {!s:>8}",
    "mfu": "MFU {:5.1%}",
    "skipped": "skipped {:.0f}",
}
EVALUATION = {
    "eval_loss": "held-out loss {:7.4f}",
    "eval_perplexity": "perplexity {:9.2f}",
    "eval_bits_per_byte": "bits/byte {:6.4f}",
}


class Terminal(Writer, Protocol):
    """A writer that can also be told things."""

    def say(self, text: str) -> None:
        """Shows some text, now."""
        ...


def open_terminal(steps: int, process: int, stream: TextIO | None = None) -> Terminal:
    """The one for `stream`, standard output by default; only process 0 of a run says anything."""
    stream = sys.stdout if stream is None else stream
    if process != 0:
        return Silent()
    capable = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return Bar(steps, stream) if capable else Lines(steps, stream)


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def write(self, line: Line) -> None:
        """Nothing."""

    def text(self, step: int, name: str, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """One line of plain text for each line of the log, in fixed columns."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self._steps, self._stream = steps, stream

    def say(self, text: str) -> None:
        """Prints the text."""
        print(printable(text, self._stream), file=self._stream, flush=True)

    def write(self, line: Line) -> None:
        """Prints the line."""
        self.say(summary(line, self._steps, FULL if "loss" in line else EVALUATION))

    def text(self, step: int, name: str, text: str) -> None:
        """Prints the text under a title."""
        self.say(titled(step, name, text))

    def close(self) -> None:
        """Nothing is left to do."""


class Bar:
    """A progress bar that stays at the bottom; everything else scrolls past above it."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        """The bar appears with the first line of training; rich is imported then."""
        self._steps, self._stream = steps, stream
        self._say = Lines(steps, stream).say
        self._stop = lambda: None
        self._move = self._begin

    def say(self, text: str) -> None:
        """Prints the text above the bar."""
        self._say(text)

    def write(self, line: Line) -> None:
        """Moves the bar for a line of training; prints any other."""
        if "loss" in line:
            self._move(int(line["step"]), summary(line, self._steps, BRIEF))
        else:
            self.say(summary(line, self._steps, EVALUATION))

    def text(self, step: int, name: str, text: str) -> None:
        """Prints the text under a title, above the bar."""
        self.say(titled(step, name, text))

    def close(self) -> None:
        """The bar stays as it is."""
        self._stop()

    def _begin(self, step: int, text: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=self._stream)
        columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
        progress = Progress(*columns, console=console)
        task = progress.add_task(text, total=self._steps, completed=step)

        def say(text: str) -> None:
            text = printable(text, self._stream)
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        def move(step: int, text: str) -> None:
            progress.update(task, completed=step, description=text)

        self._say, self._move, self._stop = say, move, progress.stop
        progress.start()


def summary(line: Line, steps: int, columns: Mapping[str, str]) -> str:
    """A line in words: its step and these columns, each at its place; "left" is the time to go."""
    shown: dict[str, Any] = {name: x for name, x in line.items() if name != "skipped" or x}
    if "step_seconds" in line:
        left = (steps - line["step"]) * line["step_seconds"]
        shown["left"] = datetime.timedelta(seconds=round(left))
    cells = [
        form.format(shown[name]) if name in shown else " " * len(form.format(0))
        for name, form in columns.items()
    ]
    width = len(str(steps))
    return f"step {line['step']:{width}.0f}/{steps}  {'  '.join(cells)}".rstrip()


def titled(step: int, name: str, text: str) -> str:
    """Text under a title that says what it is."""
    indented = "\n".join(f"    {line}" for line in text.splitlines())
    return f"{name} at step {step}:\n{indented}"


def printable(text: str, stream: TextIO) -> str:
    """Text that a stream can show: what a model writes may steer a terminal, or have no code."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    encoding = stream.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
