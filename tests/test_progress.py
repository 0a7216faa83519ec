"""What people see: a bar on a terminal, plain lines elsewhere."""

import contextlib
import io
import math
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest

from pretrain.progress import Bar, Lines, Silent, open_terminal, printable

POINT = {"step": 20, "loss": 2.5, "bits_per_byte": 3.6, "grad_norm": 0.8, "learning_rate": 1e-3}
TIMED = POINT | {"step_seconds": 0.5, "tokens_per_second": 12345.6}


@contextlib.contextmanager
def terminal_stream() -> Iterator[tuple[Any, int]]:
    """A text stream that is a terminal, and the descriptor that shows what was written to it."""
    shown, given = pty.openpty()
    with os.fdopen(given, "w") as stream:
        yield stream, shown
    os.close(shown)


def test_a_bar_on_a_terminal_plain_lines_elsewhere_and_silence_off_process_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal_stream() as (stream, _):
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(open_terminal(100, 0, stream), Bar)
        assert isinstance(open_terminal(100, 1, stream), Silent)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(open_terminal(100, 0, stream), Lines)
    assert isinstance(open_terminal(100, 0, io.StringIO()), Lines)


def test_plain_lines_have_fixed_columns_and_no_control_characters() -> None:
    stream = io.StringIO()
    lines = open_terminal(1000, 0, stream)
    lines.write({**POINT, "step": 1})
    lines.write(TIMED)
    lines.write({**TIMED, "step": 1000, "loss": math.nan, "skipped": 2, "mfu": 0.4623})
    lines.write({**POINT, "skipped": 2})
    lines.write({"step": 1000, "eval_loss": 2.0, "eval_perplexity": 7.4, "eval_bits_per_byte": 2.9})
    lines.text(1000, "sample", "def \x1b[31mred\x07():\n\tpass")
    lines.close()
    shown = stream.getvalue()
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    first, timed, last, untimed, held_out, *sample = shown.splitlines()
    assert first == "step    1/1000  loss  2.5000  bits/byte 3.6000  grad      0.8  lr 1.00e-03"
    assert timed.startswith(first.replace("   1/", "  20/"))
    assert timed.endswith("e-03     0.500 s/step       12,346 tokens/s  left  0:08:10")
    assert last.index("s/step") == timed.index("s/step")
    assert last.endswith("left  0:00:00  MFU 46.2%  skipped 2")
    assert "loss     nan" in last
    assert untimed.index("skipped") == last.index("skipped")
    assert held_out == (
        "step 1000/1000  held-out loss  2.0000  perplexity      7.40  bits/byte 2.9000"
    )
    assert sample == ["sample at step 1000:", "    def \ufffd[31mred\ufffd():", "    \tpass"]


def test_text_without_a_code_in_the_streams_encoding_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert printable("naïve \x00", stream) == "na\\xefve \\ufffd"


def test_the_bar_shows_step_loss_speed_and_time_left_in_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with terminal_stream() as (stream, shown):
        bar = open_terminal(1000, 0, stream)
        bar.say("banner")
        bar.write({**POINT, "step": 1})
        bar.write(TIMED)
        bar.write({"step": 20, "eval_loss": 2.0})
        bar.text(20, "sample", "[bold]x")
        bar.close()
        bar.say("done")
        text = ""
        while not text.endswith("done\r\n"):
            text += os.read(shown, 2**16).decode()
    assert text.startswith("banner\r\n")
    assert "step   20/1000  loss  2.5000     12,346 tokens/s  left  0:08:10" in text
    assert "step   20/1000  held-out loss  2.0000" in text
    assert "    [bold]x" in text
