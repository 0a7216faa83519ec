"""Planned numbers beside measured ones."""

from typing import Any

import pytest

from pretrain.planned import FILE, beside_plan
from pretrain.rundir import RunDirectory


class Lines:
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def write(self, line: Any) -> None:
        self.lines.append(line)

    def text(self, step: int, name: str, text: str) -> None:
        self.lines.append((step, name, text))

    def close(self) -> None:
        self.lines.append("closed")


@pytest.mark.parametrize(("seconds", "warned"), [(2.2, False), (2.4, True), (1.6, True)])
def test_a_run_says_once_where_it_is_off_by_more_than_15_percent(tmp_path, seconds, warned):
    directory, said, first, second = RunDirectory(tmp_path / "run"), list[str](), Lines(), Lines()
    directory.make()
    directory.write_json(FILE, {"step_seconds": 2.0, "hbm_peak_bytes": None})
    for writer in beside_plan([first, second], directory, said.append):
        writer.write({"step": 1, "loss": 3.0, "device_memory_bytes": 10})
        writer.write({"step": 2, "step_seconds": seconds})
        writer.write({"step": 3, "step_seconds": seconds})
        writer.close()
    assert first.lines == second.lines
    assert first.lines[0] == {"step": 1, "loss": 3.0, "device_memory_bytes": 10}
    assert first.lines[1]["planned_step_seconds"] == 2.0 and first.lines[-1] == "closed"
    assert len(said) == warned
    if warned:
        assert said[0].startswith("planned 2 seconds a step, measured")


def test_without_a_plan_the_writers_are_as_they_were(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    writers = [Lines()]
    assert beside_plan(writers, directory, print) is writers
