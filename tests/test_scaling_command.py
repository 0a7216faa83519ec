"""The command: what it prints, what it writes, and one sentence for every mistake."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import config
from pretrain.run import Run
from pretrain.scaling.__main__ import main
from pretrain.scaling.forms import HOFFMANN
from pretrain.scaling.points import Points
from scaling_points import CHINCHILLA, best_size, chinchilla, drawn


def write(path: Path, points: Points, losses: list[str] | None = None) -> Path:
    losses = losses or [repr(float(x)) for x in points.loss]
    rows = zip(points.N.tolist(), points.D.tolist(), losses, strict=True)
    path.write_text("N,D,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of noisy points and the fit that the command made of it."""
    folder = tmp_path_factory.mktemp("study")
    write(folder / "points.csv", chinchilla(0.005))
    assert (
        main(
            [
                "fit",
                str(folder / "points.csv"),
                "--resamples",
                "100",
                "--out",
                str(folder / "fit.json"),
            ]
        )
        == 0
    )
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_a_fit_prints_its_coefficients_and_all_that_qualifies_them(place, capsys):
    found = printed(capsys, "fit", place / "points.csv", "--resamples", "100")
    for name, want in HOFFMANN.items():
        low, high = found["intervals"][name]
        assert low <= want <= high and low <= found[name] <= high
        low, high = found["intervals_analytic"][name]
        assert low < found[name] < high
    assert (found["points"], found["dropped"], found["dropped_why"]) == (30, 0, [])
    assert found["objective"] > 0 and 10 < found["condition"] < 1000
    assert found["unidentified"] == [] and len(found["residuals"]) == 30
    assert found["residuals"][3]["point"] == "line 5"
    assert found["leave_largest_budget_out"]["points"] == 5
    assert 0 < found["leave_largest_budget_out"]["mean_error"] < 0.02
    assert found["a"] + found["b"] == pytest.approx(1)


def test_a_loss_that_is_nan_is_dropped_aloud(tmp_path, capsys):
    points = chinchilla(0.005)
    losses = [repr(float(x)) for x in points.loss]
    losses[7] = "nan"
    file = write(tmp_path / "x.csv", points, losses)
    assert main(["fit", str(file), "--resamples", "0", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == "pretrain.scaling: 1 dropped (line 9: its loss is nan).\n"
    assert (json.loads(output.out)["points"], json.loads(output.out)["dropped"]) == (29, 1)


def test_a_constant_ratio_is_reported_and_has_no_intervals(tmp_path, capsys):
    N = np.geomspace(1e7, 1e10, 12)
    file = write(tmp_path / "x.csv", drawn(CHINCHILLA, HOFFMANN, {"N": N, "D": 20 * N}, 0.002))
    out = tmp_path / "fit.json"
    found = printed(capsys, "fit", file, "--resamples", 40, "--out", out)
    assert found["unidentified"] == ["A", "B", "alpha", "beta"]
    assert found["intervals"]["A"] == [None, None] and "D/N is the same" in found["notes"][0]
    assert main(["predict", str(out), "--flops", "1e22"]) == 2
    assert "cannot say how to spend a budget" in capsys.readouterr().err


def test_a_prediction_writes_a_config_that_carries_its_band(place, capsys):
    large = place / "large.py"
    found = printed(
        capsys,
        "predict",
        place / "fit.json",
        "--flops",
        1e20,
        "--config",
        "llama_tiny.py",
        "--out",
        large,
    )
    assert found["N"] == pytest.approx(best_size(1e20), rel=0.2)
    assert found["N_interval"][0] < found["N"] < found["N_interval"][1]
    run = config.load(str(large))
    assert isinstance(run, Run) and run.forecast.low is not None
    run.check()
    assert run.forecast.high is not None and run.forecast.low < found["loss"] < run.forecast.high
    assert run.forecast.source == "fit.json, chinchilla of 30 points, 95 %"
    assert 6 * found["config"]["N"] * found["config"]["D"] == pytest.approx(1e20, rel=0.01)


def test_approach_2_prints_its_exponents(place, capsys):
    found = printed(capsys, "fit", place / "points.csv", "--form", "isoflop")
    assert found["a"] == pytest.approx(0.456, abs=0.03) and len(found["budgets"]) == 6
    low, high = found["intervals"]["a"]
    assert low < found["a"] < high


@pytest.mark.slow
def test_every_picture_and_the_page_are_written(place, capsys):
    assert main(["plot", str(place / "points.csv"), "--out", str(place / "report")]) == 0
    names = ["isoflop", "surface", "allocation", "extrapolation", "residuals"]
    files = [place / "report" / f"{name}.png" for name in names]
    assert capsys.readouterr().out.split() == [
        str(f) for f in [*files, place / "report" / "index.html"]
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    page = (place / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and 'src="http' not in page
    assert "objective" in page and "envelope needs training curves" in page


def test_plots_without_matplotlib_say_what_to_install(place, capsys, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["plot", str(place / "points.csv"), "--out", str(place / "none")]) == 2
    assert "pip install 'pretrain[plots]'" in capsys.readouterr().err
    assert not (place / "none").exists()


def test_counts_are_side_by_side(capsys):
    found = printed(capsys, "count", "--config", "palm_tiny.py")
    assert found["flops_6nd"] == 6 * found["parameters"] * found["tokens"]
    assert found["flops_appendix_f"] > found["flops_palm"] > found["flops_6nd"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "say what to do"),
        (["fit"], "runs"),
        (["fit", "none.csv"], "there is no none.csv"),
        (["fit", "{csv}", "--form", "chinchila"], "chinchila"),
        (["fit", "{csv}", "--resamples", "-1"], "--resamples is -1"),
        (["fit", "{csv}", "--resamples", "20"], "or 40 or more"),
        (["fit", "{csv}", "--resamples", "many"], "many"),
        (["fit", "{csv}", "--seed", "-1"], "--seed is -1"),
        (["fit", "{csv}", "--form", "repeated"], "no column 'U'"),
        (["fit", "{csv}", "--form", "learning-rate"], "no column 'lr'"),
        (["fit", "{csv}", "--form", "envelope"], "training curves"),
        (["fit", "{csv}", "--out", "no/such/x.json"], "there is no directory"),
        (["fit", "{csv}", "--form", "isoflop", "--out", "x.json"], "--out is for laws"),
        (["predict", "none.json", "--flops", "1e20"], "there is no none.json"),
        (["predict", "{csv}", "--flops", "1e20"], "is no fit"),
        (["predict", "{fit}"], "--flops"),
        (["predict", "{fit}", "--flops", "0"], "--flops is 0"),
        (["predict", "{fit}", "--flops", "1e9"], "the budgets that were fitted are 6e+18 to 3e+21"),
        (["predict", "{fit}", "--flops", "1e40"], "more than 1e+06 times them"),
        (["predict", "{fit}", "--flops", "1e20", "--out", "x.py"], "go together"),
        (["predict", "{fit}", "--flops", "1e20", "--unique-tokens", "1e9"], "form repeated"),
        (["predict", "{fit}", "--flops", "1e20", "--config", "no.py", "--out", "x.py"], "no config 'no.py'"),
        (["count", "--config", "isoflop_tiny.py"], "no config"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_sentence_and_exit_status_2(place, capsys, arguments, sentence):
    names = {"csv": place / "points.csv", "fit": place / "fit.json"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("pretrain.scaling: ") and sentence in output.err


@pytest.mark.parametrize("command", [[], ["fit"], ["predict"], ["plot"], ["count"]])
def test_help_names_every_option(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0 and "--help" in capsys.readouterr().out
