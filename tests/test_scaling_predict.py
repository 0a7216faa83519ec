"""Predictions with their intervals, and the config of a run that a law found best."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pretrain import config
from pretrain.config import Mistake
from pretrain.configs.llama_tiny import config as llama_tiny
from pretrain.configs.palm_tiny import config as palm_tiny
from pretrain.forecast import Forecast
from pretrain.run import Run
from pretrain.scaling import fit as fits
from pretrain.scaling import intervals
from pretrain.scaling.counting import counts, forward
from pretrain.scaling.fit import Fit
from pretrain.scaling.forms import HOFFMANN, DataConstrained, OverTraining
from pretrain.scaling.larger import counted, enlarged, resized, write
from pretrain.scaling.predict import at, optimum, predict
from pretrain.schedules import Ramp
from pretrain.sweeps.cost import cost, parameters
from scaling_points import CHINCHILLA, best_size, chinchilla, drawn


@pytest.fixture(scope="module")
def fitted() -> Fit:
    """Points of the published law with half a per cent of noise, fitted, with 200 resamples."""
    points = chinchilla(0.005)
    vector = fits.refit(points, CHINCHILLA, CHINCHILLA.vector(HOFFMANN), np.ones((1, 30)))[0]
    drawn_Rn = intervals.resampled(30, 200, 0)
    return Fit(CHINCHILLA, points, vector, 0.0, fits.refit(points, CHINCHILLA, vector, drawn_Rn))


def test_a_prediction_is_the_law_at_its_best_size(fitted):
    found = predict(fitted, 1e22)
    assert pytest.approx(1e22) == 6 * found.N * found.D
    assert pytest.approx(best_size(1e22, fitted.coefficients), rel=1e-9) == found.N
    loss = [CHINCHILLA.loss(fitted.vector_P, N=n, D=1e22 / 6 / n) for n in (found.N, 1.1 * found.N)]
    assert found.loss == pytest.approx(loss[0]) and loss[0] < loss[1]
    assert found.farther == pytest.approx(1e22 / 3e21)


def test_its_intervals_hold_the_truth_and_grow_with_the_distance(fitted):
    truth = CHINCHILLA.vector(HOFFMANN)
    widths = []
    for flops in (1e21, 1e23):
        found = predict(fitted, flops)
        assert found.N_interval[0] <= best_size(flops) <= found.N_interval[1]
        true_loss = CHINCHILLA.loss(truth, N=found.N, D=found.D)
        assert found.loss_interval[0] <= true_loss <= found.loss_interval[1]
        assert found.band[0] <= found.loss_interval[0] and found.loss_interval[1] <= found.band[1]
        widths.append(found.loss_interval[1] - found.loss_interval[0])
    assert widths[1] > widths[0]


def test_the_band_holds_95_of_100_new_runs(fitted):
    """Within the range of the points, where the law itself is nearly certain."""
    N, D = best_size(1e20), 1e20 / 6 / best_size(1e20)
    _, _, (low, high) = at(fitted, N, D)
    noise = np.exp(0.005 * np.random.default_rng(7).standard_normal(2000))
    runs = CHINCHILLA.loss(CHINCHILLA.vector(HOFFMANN), N=N, D=D) * noise
    assert 0.9 < np.mean((low <= runs) & (runs <= high)) < 0.995


def test_a_fit_that_does_not_tell_its_terms_apart_predicts_nothing():
    N = np.geomspace(1e7, 1e10, 12)
    points = drawn(CHINCHILLA, HOFFMANN, {"N": N, "D": 20 * N})
    with pytest.raises(Mistake, match=r"cannot say how to spend a budget: D/N is the same \(20\)"):
        predict(Fit(CHINCHILLA, points, CHINCHILLA.vector(HOFFMANN), 0.0, np.empty((0, 5))), 1e22)


def test_a_law_without_a_best_size_predicts_nothing():
    vector = CHINCHILLA.vector(HOFFMANN | {"alpha": -0.1})
    with pytest.raises(Mistake, match="no N is the best"):
        predict(Fit(CHINCHILLA, chinchilla(), vector, 0.0, np.empty((0, 5))), 1e22)


@pytest.mark.parametrize("flops", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_above_zero(fitted, flops):
    with pytest.raises(Mistake, match="--flops"):
        predict(fitted, flops)


def test_the_best_ratio_of_over_training_is_a_constant():
    """M = (b / a)^(1 / 2 eta) at every budget, where the bracket is least."""
    form = OverTraining()
    vector = form.vector({"E": 1.7, "a": 60.0, "b": 80.0, "eta": 0.15})
    for C in (1e18, 1e24):
        N = optimum(form, vector[None], C)[0]
        assert pytest.approx((80 / 60) ** (1 / 0.3), rel=1e-9) == C / 6 / N / N


def test_repeated_tokens_are_worth_less_and_few_repeats_nearly_as_much():
    form = DataConstrained()
    values = {
        "E": 1.87,
        "A": 521.0,
        "B": 1488.0,
        "alpha": 0.35,
        "beta": 0.353,
        "RD": 15.4,
        "RN": 5.3,
    }
    vector = form.vector(values)
    fresh, four, forty = (form.loss(vector, N=1e8, D=4e10, U=4e10 / k) for k in (1, 4, 40))
    assert fresh < four < forty and (four - fresh) < 0.15 * (forty - fresh)
    chinchilla_law = CHINCHILLA.loss(
        CHINCHILLA.vector({k: values[k] for k in CHINCHILLA.coefficients}), N=1e8, D=4e10
    )
    assert fresh == pytest.approx(chinchilla_law)


# --- the config -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [palm_tiny, llama_tiny])
def test_a_model_is_resized_to_about_any_number_of_parameters(base):
    for N in (3e6, 1e9):
        found = resized(base.model, N)
        assert parameters(found).total == pytest.approx(N, rel=0.25 if N < 1e7 else 0.05)
        assert found.head_dim == base.model.head_dim
        shape = (found.d_model / found.layers) / (base.model.d_model / base.model.layers)
        assert 1 / 1.6 < shape < 1.6


def test_a_number_that_no_size_is_near_is_refused():
    with pytest.raises(Mistake, match="nearest size"):
        resized(palm_tiny.model, 1e4)


def test_a_larger_run_reads_what_the_budget_leaves_also_with_a_ramp():
    for ramp in (Ramp(), Ramp(stages=((100, 4),))):
        run = enlarged(dataclasses.replace(palm_tiny, ramp=ramp), 5e6, 1e14)
        N, D = counted(run)
        assert pytest.approx(1e14, rel=1e-3) == 6 * N * D
        assert (cost(run).parameters.total, cost(run).tokens) == (N, D)


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(Mistake, match="less than a step"):
        enlarged(palm_tiny, 4e6, 6 * 4e6 * 500)


def test_the_file_that_is_written_is_the_run_with_its_forecast(tmp_path: Path):
    run = enlarged(palm_tiny, 5e6, 1e14)
    forecast = Forecast(loss=2.0, low=1.9, high=2.1, source='a "fit"')
    write(tmp_path / "sub" / "large.py", "palm_tiny.py", palm_tiny, run, forecast)
    loaded = config.load(str(tmp_path / "sub" / "large.py"))
    assert isinstance(loaded, Run)
    assert list(config.diff(dataclasses.replace(run, forecast=forecast), loaded)) == []
    loaded.check()


# --- counting ---------------------------------------------------------------------------------------


def test_the_conventions_differ_by_tables_and_attention():
    found, model = counts(palm_tiny), palm_tiny.model
    tokens = 300 * 8 * 256
    assert found.tokens == tokens and found.flops_6nd == 6 * found.parameters * tokens
    attention = 12 * model.layers * model.heads * model.head_dim * 256
    assert found.flops_palm - found.flops_6nd == attention * tokens
    softmax = 3 * 3 * model.layers * model.heads * 256
    inner = 6 * found.non_embedding_parameters
    assert found.flops_appendix_f_without_tables == tokens * (inner + attention + softmax)
    tables = 3 * 2 * (2 * model.vocab * model.d_model)
    assert found.flops_appendix_f - found.flops_appendix_f_without_tables == tables * tokens


def test_appendix_f_of_a_model_is_the_papers_formula():
    """GPT-2's shapes are the paper's: four projections and two matrices; gains and biases are the rest."""
    from pretrain.configs.gpt2 import config as gpt2
    from pretrain.scaling.counting import appendix_f

    m = gpt2.model
    sizes = {n: getattr(m, n) for n in ("layers", "d_model", "d_ff", "heads", "head_dim", "vocab")}
    ours, theirs = forward(m, 1024), appendix_f(**sizes, seq_len=1024)
    assert (ours.embedding, ours.head, ours.scores) == (
        theirs.embedding,
        theirs.head,
        theirs.scores,
    )
    assert ours.matrices == pytest.approx(theirs.matrices, rel=2e-3)
