"""The coordinate check as a command: what it says of sizes that are made up here."""

import json
from pathlib import Path

import numpy as np
import pytest

from pretrain import coordinates
from pretrain.coordinates import Check
from pretrain.growth import ACTIVATIONS, INITIAL, Growth
from pretrain.parametrisation import MuP
from pretrain.run import Run

KERNEL, GAIN = "stack/blocks/mlp/up/kernel", "stack/blocks/norm/gain"
WIDTHS = (64, 128, 256)
PALM = ["--config", "palm_tiny.py", "--training-steps", "2"]


def powers(**changed: float) -> dict[str, float]:
    """By name the power of the width that a size is; those of the theory, but for some."""
    flat = dict.fromkeys((*ACTIVATIONS, KERNEL, GAIN), 0.0) | {INITIAL: -0.5}
    return flat | {name.replace("_", " "): power for name, power in changed.items()}


def grown(width: int, sizes: dict[str, float], entries: float = 0.0) -> Growth:
    """What a run would do whose sizes are such powers of its width."""
    steps = np.arange(1, 4)
    return Growth({n: steps * width**p for n, p in sizes.items()}, {KERNEL: steps * width**entries})


def check(sizes: dict[str, float], entries: float = 0.0) -> Check:
    found = [grown(width, sizes, entries) for width in WIDTHS]
    sizes_at, aligned = (
        {
            name: np.stack([getattr(one, kind)[name] for one in found])
            for name in getattr(found[0], kind)
        }
        for kind in ("sizes", "aligned")
    )
    return Check(WIDTHS, Growth(sizes_at, aligned), frozenset())


def test_a_slope_is_the_power_of_the_width() -> None:
    np.testing.assert_allclose(check(powers(embedding=0.7)).slopes("embedding"), 0.7)


def test_sizes_as_the_theory_has_them_are_no_fault() -> None:
    assert check(powers()).fault() == ""
    fading = check(powers() | {"residual stream": -0.2, "logits, learned": -0.2})
    assert fading.fault() == ""


@pytest.mark.parametrize(
    ("sizes", "entries", "words"),
    [
        (powers(embedding=0.5), 0.0, "embedding grows with a slope of 0.50 at the start"),
        (powers(embedding=-0.5), 0.0, "embedding falls with a slope of -0.50 at the start"),
        (powers() | {KERNEL: 0.5}, 0.0, f"{KERNEL} grows with a slope of 0.50 at the start"),
        (powers() | {INITIAL: 0.0}, 0.0, ""),
        (powers() | {INITIAL: 0.5}, 0.0, f"{INITIAL} grows with a slope of 0.50 at the start"),
        (powers() | {INITIAL: -1.0}, 0.0, f"{INITIAL} falls with a slope of -1.00 at the start"),
        (powers(), -0.5, f"{KERNEL}, by its entries, falls with a slope of -0.50 at step 1"),
    ],
)
def test_what_is_not_as_the_theory_has_it_is_named(
    sizes: dict[str, float], entries: float, words: str
) -> None:
    assert check(sizes, entries).fault() == words


def test_a_size_of_zero_has_no_slope() -> None:
    found = check(powers())
    found.growth.sizes[GAIN][:, 0] = 0.0
    assert np.isnan(found.slopes(GAIN)[0]) and found.fault() == ""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Powers under muP and without; nothing is trained."""
    told = {"mup": powers(), "standard": powers() | {"residual stream": 1.0}}

    def growth(run: Run, steps: int) -> Growth:
        kind = "mup" if isinstance(run.parametrisation, MuP) else "standard"
        return grown(run.model.d_model, told[kind])

    class Same(dict):  # type: ignore[type-arg]
        def __missing__(self, name: str) -> object:
            return type("Weight", (), {"outputs": 1})

    monkeypatch.setattr(coordinates, "growth", growth)
    everything = type("Weights", (), {"by_name": Same()})
    monkeypatch.setattr(coordinates, "weights", lambda model: everything)
    return told


def test_the_command_prints_both_tables_draws_both_rows_and_ends_with_0(
    made_up: dict[str, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "coordinates.png"
    assert coordinates.main([*PALM, "--out", str(picture)]) == 0
    said, told = capsys.readouterr()
    assert told.splitlines()[0] == "pretrain.coordinates: 2 steps at width 64, Standard"
    assert said.count("residual stream") == 2 and "muP is flat, to a slope of 0.25" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_ends_with_1_and_the_reason_where_mup_is_not_as_it_should_be(
    made_up: dict[str, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    made_up["mup"][KERNEL] = 1.0
    assert coordinates.main([*PALM, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["fault"] == f"{KERNEL} grows with a slope of 1.00 at the start"
    assert printed["standard"]["residual stream"]["slopes"] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PALM, "--widths", "64"], "two or more, ascending"),
        ([*PALM, "--widths", "128,64"], "two or more, ascending"),
        ([*PALM, "--widths", "64,x"], "give whole numbers"),
        ([*PALM, "--widths", "64,100"], "model.heads = "),
        (["--config", "palm_tiny.py", "--training-steps", "0"], "make it 1 or more"),
        (["--config", "palm_tny.py"], "palm_tiny.py"),
        ([], "name a config"),
        ([*PALM, "--out", "/nowhere/x.png"], "cannot be written"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_status_2(
    made_up: dict[str, dict[str, float]],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert coordinates.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error, error
