"""Schedules against their formulas written by hand, and the properties that all of them keep."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Mistake
from pretrain.schedules import (
    Constant,
    Cosine,
    Exponential,
    HalfCosine,
    Line,
    Linear,
    OneMinusSqrt,
    Ramp,
    Rsqrt,
    Schedule,
    WarmupStableDecay,
)

SHAPES = {
    Line: lambda p: 1 - p,
    HalfCosine: lambda p: (1 + math.cos(math.pi * p)) / 2,
    OneMinusSqrt: lambda p: 1 - math.sqrt(p),
}


LONGEST = 1000


def curve(schedule: Schedule, steps: int) -> np.ndarray:
    """The factor at steps 0 ... steps, the last being one past the run's end."""
    every = jnp.arange(LONGEST + 1)  # one shape, one compilation for all runs
    return np.asarray(schedule.factor(every, steps))[: steps + 1]


def fraction(step: int, start: int, end: int) -> float:
    return min(max((step - start) / (end - start), 0), 1) if end > start else float(step >= end)


def by_hand(schedule: Schedule, step: int, steps: int) -> float:
    rise = min(1, (step + 1) / schedule.warmup) if schedule.warmup else 1
    match schedule:
        case Constant():
            return rise
        case Linear():
            p = fraction(step, schedule.warmup, steps)
            return rise * (1 - p * (1 - schedule.final))
        case Cosine():
            p = fraction(step, schedule.warmup, steps)
            return rise * (1 - (1 - schedule.final) * (1 - math.cos(math.pi * p)) / 2)
        case Rsqrt():
            return rise * min(1, math.sqrt(schedule.constant / step) if step else 1)
        case WarmupStableDecay():
            p = fraction(step, steps - schedule.decay, steps)
            left = SHAPES[type(schedule.shape)](p) if schedule.decay else 1 - p
            return rise * (schedule.final + (1 - schedule.final) * left)
    raise AssertionError(schedule)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Schedule, int]:
    """A schedule that passes its own check, and the length of its run."""
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    final = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    shape = draw(st.sampled_from([kind() for kind in SHAPES]))
    schedule = draw(
        st.sampled_from(
            [
                Constant(warmup=warmup),
                Linear(warmup=warmup, final=final),
                Cosine(warmup=warmup, final=final),
                Rsqrt(warmup=warmup, constant=max(warmup, 1) + draw(st.integers(0, 50))),
                WarmupStableDecay(
                    warmup=warmup,
                    decay=draw(st.integers(1, max(steps - warmup, 1))),
                    shape=shape,
                    final=final,
                ),
            ]
        )
    )
    return dataclasses.replace(schedule, decay=0) if warmup == steps and hasattr(
        schedule, "decay"
    ) else schedule, steps


@settings(deadline=None, max_examples=60)
@given(runs())
def test_every_schedule_follows_its_formula_and_keeps_its_promises(
    run: tuple[Schedule, int],
) -> None:
    schedule, steps = run
    schedule.check(steps)
    got, warm = curve(schedule, steps), max(schedule.warmup - 1, 0)
    during = got[:steps]
    np.testing.assert_allclose(
        during, [by_hand(schedule, s, steps) for s in range(steps)], atol=2e-6
    )
    assert during[warm] == pytest.approx(1, abs=1e-6), "the peak is reached where warm-up ends"
    assert np.all(during > 0) and np.all(during <= 1 + 1e-6), (
        "no step is wasted and none exceeds the peak"
    )
    assert np.all(np.diff(got[:warm]) > 0), "warm-up rises"
    assert np.all(np.diff(got[warm:]) <= 1e-6), "after warm-up the rate never rises"
    floor = getattr(schedule, "final", 0.0)
    assert np.all(during[warm:] >= floor - 1e-6), "and never goes below its floor"


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(warmup=100, final=0.1),
        Cosine(warmup=100),
        Rsqrt(warmup=100, constant=100),
        *(WarmupStableDecay(warmup=100, decay=400, shape=s()) for s in (Line, HalfCosine)),
    ],
    ids=lambda s: f"{type(s).__name__}-{type(getattr(s, 'shape', None)).__name__}",
)
def test_a_rate_moves_by_at_most_a_hundredth_per_step(schedule: Schedule) -> None:
    assert np.max(np.abs(np.diff(curve(schedule, 1000)))) <= 0.01 + 1e-6


@pytest.mark.parametrize(
    "schedule",
    [Linear(final=0.25), Cosine(final=0.25), WarmupStableDecay(decay=10, final=0.25)],
    ids=lambda s: type(s).__name__,
)
def test_the_floor_is_reached_one_past_the_last_step_and_holds(schedule: Schedule) -> None:
    got = np.asarray(schedule.factor(jnp.array([39, 40, 400]), 40))
    assert got[0] > 0.25 and np.all(got[1:] == 0.25)


def test_palm_is_one_hundredth_for_ten_thousand_steps_and_then_one_over_root_k() -> None:
    k = np.array([0, 1, 9_999, 10_000, 10_001, 40_000, 255_000])
    expected = np.where(k < 10_000, 1e-2, 1 / np.sqrt(np.maximum(k, 1)))
    rate = 1e-2 * np.asarray(Rsqrt().factor(jnp.asarray(k), 255_000))
    np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_a_schedule_traces_to_one_fp32_scalar() -> None:
    for schedule in (Constant(), Linear(), Cosine(), Rsqrt(), WarmupStableDecay(decay=3)):
        out = jax.eval_shape(lambda step, s=schedule: s.factor(step, 10), jnp.int32(3))
        assert (out.shape, out.dtype) == ((), jnp.float32)


@pytest.mark.parametrize(
    ("schedule", "names"),
    [
        (Constant(warmup=-1), ("warmup is -1",)),
        (Linear(final=1.5), ("final is 1.5",)),
        (Cosine(final=-0.1), ("final is -0.1",)),
        (Rsqrt(constant=0), ("constant is 0",)),
        (Rsqrt(warmup=9, constant=5), ("constant is 5", "warmup is 9")),
        (WarmupStableDecay(warmup=5, decay=6), ("decay is 6", "warmup is 5", "5 or less")),
        (WarmupStableDecay(decay=-1), ("decay is -1",)),
        (WarmupStableDecay(decay=3, final=2), ("final is 2",)),
    ],
)
def test_a_schedule_that_does_not_fit_its_run_names_the_fields(
    schedule: Schedule, names: tuple[str, ...]
) -> None:
    with pytest.raises(Mistake) as mistake:
        schedule.check(10)
    assert all(name in str(mistake.value) for name in names)


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 9), max_size=4),
    sequences=st.lists(st.integers(1, 64), min_size=4, max_size=4),
    batch=st.integers(1, 64),
)
def test_ramp_rows_are_what_a_loop_over_the_steps_counts(
    lengths: list[int], sequences: list[int], batch: int
) -> None:
    ends = np.cumsum(lengths).tolist()
    ramp = Ramp(stages=tuple(zip(ends, sequences, strict=False)))
    ramp.check()
    first = 0
    for step in range(sum(lengths) + 10):
        size = next((n for until, n in ramp.stages if step < until), batch)
        assert ramp.rows(step, batch) == (first, size)
        assert size in ramp.sizes(batch)
        first += size
    assert len(set(ramp.sizes(batch))) == len(ramp.sizes(batch))


def test_palms_ramp_reads_776_billion_tokens_in_255_thousand_steps() -> None:
    ramp = Ramp(stages=((50_000, 512), (115_000, 1024)))
    assert ramp.rows(255_000, 2048)[0] * 2048 == 775_946_240_000
    assert ramp.sizes(2048) == (512, 1024, 2048)


@pytest.mark.parametrize("stages", [((5, 2), (5, 4)), ((5, 2), (3, 4)), ((0, 2),), ((5, 0),)])
def test_a_ramp_out_of_order_or_empty_is_refused(stages: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(Mistake, match=r"ramp\.stages"):
        Ramp(stages=stages).check()


@pytest.mark.parametrize("cls", [Linear, Cosine])
def test_a_decay_over_other_steps_than_the_run_s_is_that_of_a_run_of_those_steps(cls: type):
    schedule = cls(warmup=10, final=0.1, over=60)
    assert np.array_equal(curve(schedule, 100)[:60], curve(cls(warmup=10, final=0.1), 60)[:60])
    assert np.allclose(curve(schedule, 100)[60:], 0.1)  # reached, and kept
    assert np.array_equal(curve(schedule, 30), curve(schedule, 100)[:31])  # not reached
    with pytest.raises(Mistake, match="set over to more than 10"):
        cls(warmup=10, over=10).check()


def test_an_exponential_decay_loses_the_same_share_every_step():
    got = curve(Exponential(constant=20, final=0.01), 100)
    assert np.all(got[:21] == 1) and np.isclose(got[-1], 0.01)
    assert np.allclose(got[21:] / got[20:-1], 0.01 ** (1 / 80), rtol=1e-5)
    with pytest.raises(Mistake, match="more than 0"):
        Exponential(final=0.0).check()
