"""The log: strict lines, one step late; rates by a fake clock; what people and TensorBoard see."""

import contextlib
import io
import itertools
import json
import math
import os
import pty
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.config import Mistake
from pretrain.flops import mfu
from pretrain.metrics import Log, memory, plain
from pretrain.progress import Bar, Lines, Silent, open_terminal, printable
from pretrain.rundir import RunDirectory
from pretrain.throughput import Throughput, process_started
from pretrain.writers import Jsonl, TensorBoard, open_writers, tag


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Result:
    """A device scalar that notes when the host reads it."""

    def __init__(self, value: float, name: str, events: list[str]) -> None:
        self._value, self._name, self._events = value, name, events

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._events.append(f"read {self._name}")
        return np.asarray(self._value, np.float32)


class Kept:
    """A writer that keeps lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.closed = False

    def write(self, line: Any) -> None:
        self.lines.append(dict(line))

    def text(self, step: int, name: str, text: str) -> None:
        self.lines.append({"step": step, name: text})  # type: ignore[dict-item]

    def close(self) -> None:
        self.closed = True


def throughput(clock: Callable[[], float], **given: Any) -> Throughput:
    defaults: dict[str, Any] = {"sequences": lambda n: 8 * n, "seq_len": 16}
    defaults |= {"flops_per_token": 1e6, "peak_flops": None, "started": 0.0, "clock": clock}
    return Throughput(**(defaults | given))


def ticking() -> Throughput:
    """Where the rates do not matter: a second passes each time that somebody looks."""
    return throughput(itertools.count(1.0).__next__)


def log(kept: Kept, rates: Throughput, **given: Any) -> Log:
    defaults: dict[str, Any] = {"steps": 100, "every": 1, "bytes_per_token": 1.0}
    defaults |= {"waited": lambda: 0.0}
    watches = given.pop("watches", [])
    return Log([kept], watches, rates, **(defaults | given))


def metrics(loss: Any = 2.0, **given: Any) -> dict[str, Any]:
    return {"loss": loss, "tokens": np.float32(128), "skipped_in_a_row": np.int32(0)} | given


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# --- the log --------------------------------------------------------------------------------------


def test_the_metrics_of_a_step_are_read_only_after_the_next_one_was_dispatched() -> None:
    events: list[str] = []
    with log(Kept(), ticking()) as a_log:
        for step in (1, 2, 3):
            events.append(f"dispatch {step}")
            a_log.step(step, metrics(Result(1.0, str(step), events)))
    assert events == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3"]


def test_a_line_carries_the_numbers_of_its_own_step() -> None:
    kept, rates = Kept(), ticking()
    with log(kept, rates) as a_log:
        for step in (1, 2, 3):
            a_log.step(step, metrics(np.float32(10 * step)))
    assert [(line["step"], line["loss"]) for line in kept.lines] == [(1, 10), (2, 20), (3, 30)]
    assert [line["sequences"] for line in kept.lines] == [8, 16, 24]
    assert [line["tokens"] for line in kept.lines] == [128, 256, 384]
    assert kept.closed


def test_the_first_the_last_and_every_so_many_steps_become_lines() -> None:
    kept, rates = Kept(), ticking()
    with log(kept, rates, every=4, steps=10) as a_log:
        for step in range(1, 11):
            a_log.step(step, metrics())
    assert [line["step"] for line in kept.lines] == [1, 4, 8, 10]


def test_a_watch_sees_every_step_and_what_it_raises_ends_the_run_without_waiting_for_the_next() -> (
    None
):
    seen, events = [], list[str]()

    def watch(step: int, numbers: Any) -> None:
        seen.append(step)
        if step == 3:
            raise Mistake("enough.")

    kept, rates = Kept(), ticking()
    with pytest.raises(Mistake), log(kept, rates, watches=[watch], every=50) as a_log:
        for step in range(1, 9):
            a_log.step(step, metrics(Result(1.0, str(step), events)))
    assert seen == [1, 2, 3]
    assert events[-1] == "read 3"
    assert kept.closed


def test_a_line_has_perplexity_bits_per_byte_and_the_valid_tokens_of_the_batch() -> None:
    kept, rates = Kept(), ticking()
    with log(kept, rates, bytes_per_token=4.0) as a_log:
        a_log.step(1, metrics(np.float32(math.log(16)), tokens=np.float32(100)))
        a_log.step(2, metrics(np.float32(1e4)))
    line = kept.lines[0]
    assert line["perplexity"] == pytest.approx(16, rel=1e-6)
    assert line["bits_per_byte"] == pytest.approx(1.0, rel=1e-6)  # 4 bits over 4 bytes
    assert line["valid_tokens"] == 100
    assert kept.lines[1]["perplexity"] == math.inf


def test_an_evaluation_comes_behind_the_line_of_its_step() -> None:
    kept, rates = Kept(), ticking()
    with log(kept, rates) as a_log:
        a_log.step(1, metrics())
        a_log.write(1, {"eval_loss": 3.0})
        a_log.text(1, "sample", "abc")
    assert [sorted(line)[0] for line in kept.lines] == ["bits_per_byte", "eval_loss", "sample"]


def test_replicated_device_metrics_become_plain_numbers_in_the_shortest_digits() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loss = jax.device_put(jnp.float32(0.1), sharding)
    kept, rates = Kept(), ticking()
    with log(kept, rates) as a_log:
        a_log.step(1, metrics(loss, skipped_in_a_row=jnp.int32(3)))
    assert kept.lines[0]["loss"] == 0.1
    assert np.float32(kept.lines[0]["loss"]) == np.float32(0.1)
    assert type(kept.lines[0]["skipped_in_a_row"]) is int
    assert plain(jnp.bfloat16(2.5)) == 2.5
    assert math.isnan(plain(np.float32("nan")))


def test_memory_is_what_the_backend_reports() -> None:
    found = memory()
    assert list(found) == ["host_memory_bytes"]  # CPU devices report none
    assert 2**26 < found["host_memory_bytes"] < 2**40


# --- rates ----------------------------------------------------------------------------------------


def test_a_step_lasts_from_the_result_before_it_to_its_own_and_the_first_is_not_timed() -> None:
    clock, kept = Clock(), Kept()
    with log(kept, throughput(clock, peak_flops=1e9)) as a_log:
        a_log.step(1, metrics())
        clock.now = 20.0  # compilation, then step 1
        a_log.step(2, metrics())
        clock.now = 22.0
        a_log.step(3, metrics())
        clock.now = 25.0
    assert "tokens_per_second" not in kept.lines[0]
    assert "mfu" not in kept.lines[0]
    assert [line["step_seconds"] for line in kept.lines[1:]] == [2.0, 3.0]
    assert [line["tokens_per_second"] for line in kept.lines[1:]] == [64.0, 128 / 3]
    assert kept.lines[1]["mfu"] == 64.0 * 1e6 / 1e9
    assert [line["goodput"] for line in kept.lines] == [0.0, 2 / 22, 5 / 25]
    assert [line["seconds"] for line in kept.lines] == [20.0, 22.0, 25.0]


def test_rates_of_a_line_are_means_over_all_its_steps() -> None:
    clock, kept, waits = Clock(), Kept(), iter([0.0, 0.25, 0.25, 1.0, 0.5])
    with log(kept, throughput(clock), every=5, waited=lambda: next(waits)) as a_log:
        for step in range(1, 6):
            a_log.step(step, metrics())
            clock.now += 2.0
    line = kept.lines[-1]
    assert line["step_seconds"] == 2.0
    assert line["data_wait_seconds"] == 0.5
    assert line["goodput"] == (4 * 2.0 - 2.0) / 10.0
    assert "mfu" not in line  # the peak of the device is not known


def test_evaluation_and_checkpoints_count_neither_as_step_time_nor_as_goodput() -> None:
    clock, kept = Clock(), Kept()
    with log(kept, throughput(clock)) as a_log:
        a_log.step(1, metrics())
        clock.now = 1.0
        a_log.step(2, metrics())
        clock.now = 2.0
        with a_log.aside():
            assert kept.lines[-1]["step"] == 2  # known before the block begins
            clock.now = 50.0
        a_log.step(3, metrics())
        clock.now = 52.0
    assert [line["step_seconds"] for line in kept.lines[1:]] == [1.0, 2.0]
    assert kept.lines[-1]["goodput"] == 3 / 52


def test_the_compilation_for_another_batch_size_is_not_timed() -> None:
    def sequences(n: int) -> int:
        return 8 * min(n, 3) + 16 * max(n - 3, 0)

    clock, kept = Clock(), Kept()
    with log(kept, throughput(clock, sequences=sequences)) as a_log:
        for step in range(1, 6):
            if step == 4:
                clock.now += 30.0  # compiling for 16 sequences
            a_log.step(step, metrics())
            clock.now += 1.0
    timed = {line["step"]: line["step_seconds"] for line in kept.lines if "step_seconds" in line}
    assert timed == {2: 1.0, 4: 1.0, 5: 1.0}
    assert [line["tokens"] for line in kept.lines] == [128, 256, 384, 640, 896]


def test_a_skipped_step_is_no_goodput() -> None:
    clock, kept = Clock(), Kept()
    with log(kept, throughput(clock)) as a_log:
        for step, skipped in enumerate([0, 0, 1, 2, 0], start=1):
            a_log.step(step, metrics(skipped_in_a_row=np.int32(skipped)))
            clock.now += 1.0
    assert kept.lines[-1]["goodput"] == 2 / 5


def test_mfu_is_that_of_the_palm_paper() -> None:
    chips, peak, speed = 6144, 275e12, 238.3e3
    matmuls, attention = 6 * 540.35e9, 12 * 118 * 48 * 256 * 2048
    assert round(mfu(speed, matmuls + attention, chips * peak), 4) == 0.4623
    assert round(mfu(speed, matmuls, chips * peak), 4) == 0.4573

    batch, clock = 2048, Clock()
    rates = throughput(
        clock,
        sequences=lambda n: batch * n,
        seq_len=2048,
        flops_per_token=matmuls + attention,
        peak_flops=chips * peak,
        started=-1.0,
    )
    rates.finished(1, 0.0, 0)
    clock.now = batch * 2048 / speed
    rates.finished(2, 0.0, 0)
    assert round(rates.take(2)["mfu"], 4) == 0.4623


def test_the_process_started_before_now_and_not_long_ago() -> None:
    import time

    assert 0 < time.monotonic() - process_started() < 3600


# --- metrics.jsonl --------------------------------------------------------------------------------


def test_what_is_not_finite_is_null_in_strict_json_and_named(tmp_path: Path) -> None:
    jsonl = Jsonl(tmp_path / "metrics.jsonl", 0)
    jsonl.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "x": 0.5})
    assert read(tmp_path / "metrics.jsonl") == [
        {
            "step": 1,
            "loss": None,
            "grad_norm": None,
            "low": None,
            "x": 0.5,
            "nonfinite": {"loss": "nan", "grad_norm": "inf", "low": "-inf"},
        }
    ]  # read while the file is still open: a line is visible at once
    jsonl.close()


def test_a_resumed_run_goes_on_behind_the_line_of_the_restored_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl = Jsonl(path, 0)
    for step in (1, 2, 3, 4):
        jsonl.write({"step": step, "loss": step})
        jsonl.write({"step": step, "eval_loss": step})
    jsonl.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    jsonl = Jsonl(path, 3)
    jsonl.write({"step": 4, "loss": -1.0})
    jsonl.close()
    lines = [(line["step"], line.get("loss")) for line in read(path)]
    assert lines == [(1, 1), (1, None), (2, 2), (2, None), (3, 3), (3, None), (4, -1.0)]


@pytest.mark.parametrize("end", ['{"step": 2, "lo', '{"step": 2}'])
def test_a_last_line_cut_short_is_dropped(tmp_path: Path, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + end)
    Jsonl(path, 2).close()
    assert path.read_text() == '{"step": 1}\n'


def test_a_run_that_starts_at_step_0_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\nnonsense')
    Jsonl(path, 0).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("damage", ["nonsense", "[]", "{}", "3"])
def test_a_damaged_line_among_those_to_keep_is_named_and_nothing_is_lost(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text := f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(Mistake, match=r"metrics\.jsonl, line 2 is no line of metrics"):
        Jsonl(path, 3)
    assert path.read_text() == text


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a full disk, as far as a writer can tell."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_a_sentence_with_the_path(tmp_path: Path) -> None:
    jsonl = Jsonl(tmp_path / "metrics.jsonl", 0)
    board = TensorBoard(tmp_path / "tensorboard", 0, "config = 1")
    board.write({"step": 1, "loss": 1.0})
    with disk_of(30):
        jsonl.write({"step": 1, "loss": 1.0})
        with pytest.raises(Mistake, match=r"metrics\.jsonl cannot be written \(File too large"):
            jsonl.write({"step": 2, "loss": 1.0})
        with pytest.raises(Mistake, match=r"tensorboard/events\S+ cannot be written \(File too"):
            board.write({"step": 2, "loss": 1.0})
    jsonl.close()
    board.close()
    Jsonl(tmp_path / "metrics.jsonl", 2).close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_only_process_0_opens_files(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert open_writers(directory, process=1, start=0, config="") == []
    assert list(tmp_path.iterdir()) == []
    first, second = open_writers(directory, process=0, start=0, config="")
    assert isinstance(first, Jsonl)
    assert isinstance(second, TensorBoard)
    first.close()
    second.close()


# --- TensorBoard ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's reader
def test_tensorboard_reads_the_same_numbers_at_the_same_steps_and_one_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, 0, "seed = 0")
    for step in (1, 2, 3):
        board.write({"step": step, "loss": 10.0 + step, "mfu": 0.5, "perplexity": math.inf})
    board.write({"step": 3, "eval_loss": 7.0})
    board.text(3, "sample", "once\n\x00upon")
    board.close()
    board = TensorBoard(tmp_path, 2, "seed = 1")
    board.write({"step": 3, "loss": math.nan, "tokens": 2**40})
    board.write({"step": 4, "loss": 20.0})
    board.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    curve = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert [step for step, _ in curve] == [1, 2, 3, 4]  # step 3 of the first process is forgotten
    assert [value for _, value in curve[:2] + curve[3:]] == [11.0, 12.0, 20.0]
    assert math.isnan(curve[2][1])
    assert [point.value for point in events.Scalars("throughput/tokens")] == [2.0**40]
    texts = [
        (point.step, point.tensor_proto.string_val[0])
        for point in events.Tensors("config/text_summary")
    ]
    assert texts == [(0, b"    seed = 0"), (2, b"    seed = 1")]


def test_tags_are_grouped() -> None:
    names = ["loss", "eval_bits_per_byte", "tokens_per_second", "update_norm"]
    grouped = ["train/loss", "eval/bits_per_byte", "throughput/tokens_per_second"]
    assert [tag(name) for name in names] == [*grouped, "train/update_norm"]


# --- the terminal ---------------------------------------------------------------------------------

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
    lines.write({"step": 1000, "eval_loss": 2.0, "eval_perplexity": 7.4, "eval_bits_per_byte": 2.9})
    lines.text(1000, "sample", "def \x1b[31mred\x07():\n\tpass")
    lines.close()
    shown = stream.getvalue()
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    first, timed, last, held_out, *sample = shown.splitlines()
    assert first == "step    1/1000  loss  2.5000  bits/byte 3.6000  grad      0.8  lr 1.00e-03"
    assert timed.startswith(first.replace("   1/", "  20/"))
    assert timed.endswith("e-03     0.500 s/step       12,346 tokens/s  left  0:08:10")
    assert last.index("s/step") == timed.index("s/step")
    assert last.endswith("left  0:00:00  MFU 46.2%  skipped 2")
    assert "loss     nan" in last
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
