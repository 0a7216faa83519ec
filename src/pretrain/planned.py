"""What was planned beside what is measured: `plan --run DIR` leaves it in the run directory.

A run whose directory holds a plan writes, beside each measured step time and peak of memory, the
planned one, and warns once where either is off by more than 15 %.
"""

from collections.abc import Callable, Mapping

from pretrain.rundir import RunDirectory
from pretrain.writers import Line, Writer

FILE = "plan.json"
# Key of a measured number in a line, key in the plan, and what it is in words.
PAIRS = (
    ("step_seconds", "step_seconds", "seconds a step"),
    ("device_memory_bytes", "hbm_peak_bytes", "bytes of device memory"),
)
TOLERANCE = 0.15


class Planned:
    """A writer that passes lines on with the planned numbers in them."""

    def __init__(
        self, to: Writer, plan: Mapping[str, float | None], say: Callable[[str], None]
    ) -> None:
        self._to, self._plan, self._say = to, plan, say
        self._warned: set[str] = set()

    def write(self, line: Line) -> None:
        """Adds planned_step_seconds and planned_device_memory_bytes where they were measured."""
        added = dict(line)
        for measured, key, words in PAIRS:
            planned = self._plan.get(key)
            if measured not in line or not planned:
                continue
            added[f"planned_{measured}"] = planned
            off = line[measured] / planned - 1
            if abs(off) > TOLERANCE and measured not in self._warned:
                self._warned.add(measured)
                self._say(
                    f"planned {planned:.4g} {words}, measured {line[measured]:.4g}: {off:+.0%}"
                )
        self._to.write(added)

    def text(self, step: int, name: str, text: str) -> None:
        """Passed on."""
        self._to.text(step, name, text)

    def close(self) -> None:
        """Passed on."""
        self._to.close()


def beside_plan(
    writers: list[Writer], directory: RunDirectory, say: Callable[[str], None]
) -> list[Writer]:
    """The writers, with planned numbers in their lines where the directory holds a plan."""
    if not writers or not (directory.path / FILE).exists():
        return writers
    plan = directory.read_json(FILE)
    # One of them warns: what the others would say is the same.
    return [Planned(w, plan, say if w is writers[0] else lambda text: None) for w in writers]
