"""Hooks: when they run, what the clock makes of them, when the run stops, what is traced."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pretrain.config import Mistake
from pretrain.hooks import Profile, StopOnNonFinite, aside, every


def test_every_runs_the_hook_on_the_steps_that_n_divides() -> None:
    seen: list[tuple[int, str]] = []
    hook = every(3, lambda step, state: seen.append((step, state)))
    for step in range(1, 10):
        hook(step, f"state {step}")
    assert seen == [(3, "state 3"), (6, "state 6"), (9, "state 9")]


def test_aside_runs_the_hook_inside_the_logs_block() -> None:
    events: list[Any] = []

    class Log:
        @contextlib.contextmanager
        def aside(self) -> Iterator[None]:
            events.append("stop")
            yield
            events.append("start")

    hook = every(2, aside(Log(), lambda step, state: events.append((step, state))))  # type: ignore[arg-type]
    hook(1, "a")
    hook(2, "b")
    assert events == ["stop", (2, "b"), "start"]


def test_ten_skipped_steps_in_a_row_stop_the_run_with_a_sentence() -> None:
    watch, bad = StopOnNonFinite(), {"loss": 2.0, "grad_norm": math.inf, "update_norm": 1.0}
    for row in range(10):
        watch(40 + row, {**bad, "skipped_in_a_row": row})
    with pytest.raises(Mistake) as stopped:
        watch(50, {**bad, "skipped_in_a_row": 10})
    sentence = str(stopped.value)
    assert sentence.startswith("10 steps in a row, up to step 50, were not finite (grad_norm inf)")
    assert "before step 41" in sentence
    assert "optim.peak_lr" in sentence
    overflow = {"loss": 2.0, "grad_norm": 1.0, "update_norm": math.inf, "skipped_in_a_row": 10}
    with pytest.raises(Mistake, match=r"not finite \(update_norm inf\)"):
        watch(50, overflow)
    with pytest.raises(Mistake, match="changed nothing: start again with a lower"):
        watch(10, overflow)


def test_a_profile_outside_the_run_is_a_mistake() -> None:
    Profile().check(1)
    Profile(first=8, steps=3).check(10)
    wrong: list[tuple[dict[str, int], str]] = [
        ({"first": 9}, "profile.first is 9 and profile.steps is 3, but the run ends at step 10"),
        ({"first": 1}, "profile.first is 1"),
        ({"first": 5, "steps": 0}, "profile.steps is 0"),
    ]
    for fields, words in wrong:
        with pytest.raises(Mistake, match=words):
            Profile(**fields).check(10)


@pytest.mark.parametrize(
    ("start", "traced"),
    [(0, [(4, "start"), (7, "stop")]), (5, [(6, "start"), (7, "stop")]), (7, [])],
)
def test_a_profile_traces_its_steps_also_where_a_run_resumes_among_them(
    monkeypatch: pytest.MonkeyPatch, start: int, traced: list[Any]
) -> None:
    calls: list[str] = []
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    (hook,) = Profile(first=5, steps=3).hooks("nowhere")
    for step in range(start + 1, 11):
        hook(step, jnp.zeros(()))
        found += [(step, call) for call in calls]
        calls.clear()
    assert found == traced
    assert Profile().hooks("nowhere") == []


def test_a_trace_lands_in_its_directory(tmp_path: Path) -> None:
    (hook,) = Profile(first=2, steps=1).hooks(tmp_path)
    hook(1, jnp.zeros(()))
    hook(2, jnp.ones(()) + 1)
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
