"""A run with a forecast shows its band at every evaluation and says at the end whether it held."""

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.config import Mistake, from_json, to_json
from pretrain.configs.palm_tiny import config as palm_tiny
from pretrain.forecast import Forecast
from pretrain.writers import tag
from small import Place

FORECAST = Forecast(loss=2.0, low=1.9, high=2.1, source="fit.json")


@pytest.mark.parametrize(
    "loss, words",
    [
        (
            1.9,
            "held: held-out loss 1.9000 is within 2.0000 (1.9000 to 2.1000), predicted by fit.json",
        ),
        (2.1, "held: "),
        (2.25, "missed by 0.1500: held-out loss 2.2500 is above 2.0000 (1.9000 to 2.1000)"),
        (1.6, "missed by 0.3000: held-out loss 1.6000 is below"),
        (float("nan"), "missed: the held-out loss is nan"),
    ],
)
def test_the_verdict_says_whether_it_held_and_by_how_much_not(loss, words):
    assert (FORECAST.verdict(loss) or "").startswith(words)


def test_without_its_numbers_there_is_no_forecast():
    nothing = Forecast()
    nothing.check(held_out=0.0)
    assert nothing.band == {} and nothing.verdict(2.0) is None


def test_a_forecast_with_a_number_missing_is_refused():
    with pytest.raises(Mistake, match="give all three, or none"):
        Forecast(loss=2.0, low=1.9).check(0.1)


@pytest.mark.parametrize("low, loss, high", [(2.1, 2.0, 2.2), (1.9, 2.0, 1.95), (-1.0, 2.0, 3.0)])
def test_a_band_ascends_above_zero(low, loss, high):
    with pytest.raises(Mistake, match="make them ascend"):
        Forecast(low=low, loss=loss, high=high).check(0.1)


def test_a_forecast_needs_text_that_is_held_out():
    data = dataclasses.replace(palm_tiny.data, held_out=0.0)
    run = dataclasses.replace(palm_tiny, forecast=FORECAST, data=data)
    with pytest.raises(Mistake, match=r"data\.held_out is 0"):
        run.check()


def test_a_forecast_is_part_of_the_config():
    run = dataclasses.replace(palm_tiny, forecast=FORECAST)
    run.check()
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_the_band_has_a_group_of_its_own_in_tensorboard():
    assert [tag(name) for name in FORECAST.band] == ["forecast/low", "forecast/high"]


@pytest.mark.slow
@pytest.mark.parametrize("low, high, verdict", [(0.5, 9.0, "held: "), (0.5, 0.6, "missed by ")])
def test_a_run_shows_its_band_and_says_whether_it_held(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], low: float, high: float, verdict: str
):
    place = Place(tmp_path)
    text = place.config.read_text()
    written = f"    forecast=Forecast(loss={low}, low={low}, high={high}, source='a fit'),\n)"
    text = text.rstrip()[:-1] + written
    place.config.write_text(
        text.replace(
            "from pretrain.run", "from pretrain.forecast import Forecast\nfrom pretrain.run"
        )
    )
    assert place.launch("run") == 0
    evaluations = [line for line in place.lines("run") if "eval_loss" in line]
    assert len(evaluations) == 2
    assert all((line["forecast_low"], line["forecast_high"]) == (low, high) for line in evaluations)
    out = capfd.readouterr().out
    (said,) = [line.strip() for line in out.splitlines() if line.strip().startswith(verdict)]
    assert f"{evaluations[-1]['eval_loss']:.4f}" in said and said.endswith("predicted by a fit")
