"""Approaches 1 and 2, and the laws of the learning rate and the batch."""

import numpy as np
import pytest

from pretrain.config import Mistake
from pretrain.scaling.envelope import envelope
from pretrain.scaling.forms import HOFFMANN
from pretrain.scaling.isoflop import isoflop
from pretrain.scaling.points import Curve, Points
from pretrain.scaling.power import power_law, vertex
from pretrain.scaling.tuning import tuning
from scaling_points import CHINCHILLA, best_size, chinchilla, drawn

SYMMETRIC = HOFFMANN | {"beta": HOFFMANN["alpha"]}


def profiled(values: dict[str, float], wide: float) -> Points:
    """Nine sizes around the best of every budget."""
    C = np.repeat(np.geomspace(1e19, 1e21, 4), 9)
    N = np.array([best_size(c, values) for c in C]) * np.tile(np.geomspace(1 / wide, wide, 9), 4)
    return drawn(CHINCHILLA, values, {"N": N, "D": C / (6 * N)})


def test_a_parabola_finds_its_own_minimum():
    x = np.geomspace(1, 100, 7)
    found = vertex(x, 2 + 0.3 * (np.log(x) - np.log(7)) ** 2)
    assert not isinstance(found, str)
    assert (found.x, found.y) == pytest.approx((7, 2))
    np.testing.assert_allclose(found.at(x), 2 + 0.3 * (np.log(x) - np.log(7)) ** 2)


@pytest.mark.parametrize(
    "x, y, why",
    [
        ([1, 2, 2], [3, 2, 2], "three values"),
        ([1, 2, 4], [1, 2, 1], "curves downwards"),
        ([1, 2, 4], [4, 2, 1], "outside the values tried"),
    ],
)
def test_a_minimum_that_was_not_seen_is_none(x, y, why):
    assert why in str(vertex(np.array(x, float), np.array(y, float)))


def test_approach_2_is_exact_where_the_exponents_are_equal():
    """The profile is symmetric then, so a parabola has its minimum in the right place at any width."""
    for wide in (2, 30):
        found = isoflop(profiled(SYMMETRIC, wide))
        for profile in found.profiles:
            assert pytest.approx(best_size(profile.flops, SYMMETRIC), rel=1e-6) == profile.N
        assert found.a == pytest.approx(0.5, abs=1e-9)
        assert found.b == pytest.approx(0.5, abs=1e-9)


def test_approach_2_is_biased_on_wide_grids():
    """The known bias: the minimum is off by a factor that grows with the grid, the same in each budget.

    So the exponent is right on grids centred at the best size, and the sizes are not.
    """
    law = HOFFMANN | {"alpha": 0.45, "beta": 0.25}
    off = []
    for wide in (1.5, 4, 16):
        found = isoflop(profiled(law, wide))
        factors = [p.N / best_size(p.flops, law) for p in found.profiles]
        assert max(factors) / min(factors) == pytest.approx(1, rel=1e-4)
        assert found.a == pytest.approx(0.25 / 0.70, abs=1e-4)
        off.append(abs(np.log(factors[0])))
    assert off[0] < 0.01 < off[1] < off[2]
    assert off[2] > 0.15


def test_a_budget_without_a_minimum_is_dropped_and_named():
    points = chinchilla()
    worst = points.C > 2e21
    keep = ~worst | (np.median(points.N[worst]) > points.N)
    found = isoflop(points.where(keep))
    assert len(found.profiles) == 5
    assert found.dropped[-1].name == "the budget of 3e+21 FLOPs (2 points)"


def test_one_budget_makes_no_power_law():
    with pytest.raises(Mistake, match="has 1 budgets with a minimum"):
        isoflop(chinchilla(budgets=1))


def curve(N: float, budget: float) -> Curve:
    D = np.geomspace(budget / 1000, budget, 400) / (6 * N)
    loss = CHINCHILLA.loss(CHINCHILLA.vector(HOFFMANN), N=np.full(400, N), D=D)
    return Curve(f"{N:.0e}", N, D, loss, 6 * N)


def test_the_envelope_of_many_curves_has_the_exponent_of_the_law():
    found = envelope([curve(N, 1e22) for N in np.geomspace(1e8, 1e10, 40)])
    middle = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
    assert found.a == pytest.approx(middle, abs=0.02)
    assert found.b == pytest.approx(1 - middle, abs=0.02)
    assert found.N.intervals == {} and len(set(found.best)) > 10


def test_curves_of_one_size_make_no_envelope():
    with pytest.raises(Mistake, match="two sizes"):
        envelope([curve(1e8, 1e20)])


def test_student_intervals_of_a_power_law_hold_the_truth():
    """Each of two exponents in 95 % of 400 seeds, give or take three standard deviations of that count."""
    held = []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        N, D = np.exp(draw.uniform(10, 20, 12)), np.exp(draw.uniform(15, 25, 12))
        law = power_law(3 * N**-0.2 * D**0.4 * np.exp(0.1 * draw.standard_normal(12)), N=N, D=D)
        inside = [
            law.intervals[k][0] <= x <= law.intervals[k][1] for k, x in (("N", -0.2), ("D", 0.4))
        ]
        held.append(inside)
    assert (np.abs(np.mean(held, axis=0) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 400)).all()


def test_two_knobs_that_move_together_are_refused():
    N = np.array([1e6, 1e7, 1e8])
    with pytest.raises(Mistake, match="differ too little"):
        power_law(N, N=N, D=20 * N)


def grid_of(column: str, best, sizes) -> Points:
    rows = []
    for N, D in sizes:
        centre = best(N, D)
        rows += [
            (N, D, x, 3 + 0.1 * np.log(x / centre) ** 2)
            for x in centre * np.array([0.3, 0.8, 2, 4])
        ]
    N, D, x, loss = np.array(rows).T
    return Points("grid", tuple(map(str, range(len(N)))), {"N": N, "D": D, column: x, "loss": loss})


def test_the_best_learning_rate_follows_size_and_tokens():
    sizes = [(1e6, 1e8), (1e7, 1e8), (1e6, 1e9), (1e7, 3e9)]
    found = tuning(grid_of("lr", lambda N, D: 1.8 * N**-0.7 * D**0.3, sizes), "lr")
    assert found.law.exponents == pytest.approx({"N": -0.7, "D": 0.3})
    assert found.law.scale == pytest.approx(1.8)
    assert found.law(N=1e8, D=1e10) == pytest.approx(1.8 * 1e8**-0.7 * 1e10**0.3)


def test_along_a_frontier_the_best_batch_follows_the_budget():
    sizes = [(N, 20 * N) for N in (1e6, 1e7, 1e8)]
    found = tuning(grid_of("batch", lambda N, D: 0.3 * (6 * N * D) ** 0.33, sizes), "batch")
    assert found.law.exponents == pytest.approx({"C": 0.33})


def test_a_best_value_at_the_edge_of_the_grid_is_dropped():
    points = grid_of("lr", lambda N, D: 1e-2, [(1e6, 1e8), (1e7, 1e8)])
    lower = points.where((points.N < 5e6) | (points.columns["lr"] < 5e-3))
    with pytest.raises(Mistake, match="1 pairs of N and D"):
        tuning(lower, "lr")
