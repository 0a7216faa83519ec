"""Files of a run: strict lines, one curve after a restart, a full disk, what TensorBoard reads."""

import contextlib
import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import Mistake
from pretrain.rundir import RunDirectory
from pretrain.writers import Jsonl, TensorBoard, open_writers, tag


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


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
