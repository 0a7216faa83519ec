"""The log: what becomes a line, one step late; rates by a fake clock."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.config import Mistake
from pretrain.flops import mfu
from pretrain.metrics import Log, memory, plain
from pretrain.throughput import Throughput, process_started


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


def test_a_watch_sees_every_step_and_ends_the_run_by_raising() -> None:
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


def test_an_error_in_the_loop_is_raised_without_waiting_for_the_device() -> None:
    kept, events = Kept(), list[str]()
    with pytest.raises(KeyError), log(kept, ticking()) as a_log:
        a_log.step(1, metrics(Result(1.0, "1", events)))
        raise KeyError
    assert events == []
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
