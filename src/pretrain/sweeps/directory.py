"""The directory of a sweep: what is on the disk, and what it says of every member.

    runs/isoflop_tiny/
      1e12-d64/          a run directory, with two more files:
        output.txt       all that its process said
        outcome.json     how it ended, once it has: the mark of a member that is not run again
      failed/1e12-d64/   the first attempt, where that failed
      events.out...      the experiment, for TensorBoard

Everything is derived from these files, so a sweep that was interrupted, on whatever machines, goes on
by itself, and several processes may each run some of its members.
"""

import functools
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from pretrain import manifest
from pretrain.config import Mistake, diff, to_json
from pretrain.launch import saved
from pretrain.run import Run
from pretrain.rundir import RunDirectory, cannot_write, write_json
from pretrain.sweeps import board
from pretrain.sweeps.cost import sequences
from pretrain.sweeps.member import FAILED, Member

WAITING, RUNNING = "waiting", "running"
INTERRUPTED, NOT_STARTED = "interrupted", "not started"
FINISHED, DIVERGED, BROKEN, BLOCKED = "finished", "diverged", "failed", "no trunk"
BAD = (DIVERGED, BROKEN, BLOCKED)


@dataclass(frozen=True)
class Outcome:
    """How a member stands, or how an attempt at it ended."""

    status: str  # one of the words above
    reason: str = ""  # why, where it is not finished
    seconds: float = 0.0  # of the process that ended it
    again: bool = False  # whether this is the second attempt


class SweepDirectory:
    """The files of one sweep."""

    def __init__(self, path: os.PathLike[str] | str, members: Sequence[Member]) -> None:
        self.path = Path(path)
        self.members = {member.name: member for member in members}
        self._hyperparameters = functools.cache(lambda: board.hyperparameters(members))

    def run_directory(self, member: Member) -> RunDirectory:
        """Where a member runs."""
        return RunDirectory(self.path / member.name)

    def first_attempt(self, member: Member) -> Path:
        """Where its first attempt lies once it has failed."""
        return self.path / FAILED / member.name

    def outcome(self, member: Member) -> Outcome:
        """How a member stands; one that no process has brought to an end is waiting."""
        file = self.path / member.name / "outcome.json"
        if file.exists():
            try:
                return Outcome(**json.loads(file.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise Mistake(f"{file} is damaged ({error}): delete it.") from error
        return Outcome(WAITING, again=self.first_attempt(member).exists())

    def check(self) -> None:
        """Raises Mistake where a directory holds another run than the member it is named for."""
        for member in self.members.values():
            directory = self.run_directory(member)
            if directory.config.exists():
                found = diff(saved(directory), member.run)
                changes = [change for change in found if not change.startswith("data.offset:")]
                if changes:
                    raise Mistake(
                        f"{directory.path} holds a run that differs from the sweep's ({changes[0]}): "
                        "choose another directory with --runs, or delete it."
                    )

    # --- an attempt ---------------------------------------------------------------------------------

    def prepare(self, member: Member) -> Run:
        """Make the run directory of the next attempt, or leave the one underway; its run."""
        directory = self.run_directory(member)
        if directory.config.exists():
            return saved(directory)
        passed_over = self._passed_over(member)
        data = replace(member.run.data, offset=member.run.data.offset + passed_over)
        run = replace(member.run, data=data)
        try:
            self._branch(member)
            values = self._hyperparameters()[member.name]
            board.write_start(Path(directory.tensorboard), member.name, values)
            directory.write_json("config.json", to_json(run))
        except OSError as error:
            raise cannot_write(directory.path, error) from error
        return run

    def conclude(self, member: Member, status: int, seconds: float) -> Outcome:
        """Note how a process ended that ran the member; a first failure goes out of the way.

        `status` is an exit status as `subprocess` has it.
        """
        again = self.first_attempt(member).exists()
        outcome = Outcome(*self._judged(member, status), round(seconds, 3), again)
        if outcome.status == INTERRUPTED:
            return outcome
        directory = self.path / member.name
        board.write_end(directory / "tensorboard", outcome.status == FINISHED)
        if outcome.status != FINISHED and not again:
            self.first_attempt(member).parent.mkdir(exist_ok=True)
            directory = directory.rename(self.first_attempt(member))
        write_json(epath.Path(directory / "outcome.json"), asdict(outcome))
        return outcome

    def trunk_ready(self, member: Member) -> bool:
        """Whether the checkpoint that a member starts from is complete; true of one without a trunk."""
        return member.trunk is None or manifest.complete(epath.Path(self._fork(member)))

    def _branch(self, member: Member) -> None:
        """Give a member its trunk's checkpoint, and the trunk's curve up to it."""
        if member.trunk is None:
            return
        ours, theirs = self.path / member.name, self.path / member.trunk
        draft, held = (
            ours / "checkpoints" / f"copy-of-{member.at}",
            ours / "checkpoints" / str(member.at),
        )
        if not held.exists():
            shutil.rmtree(draft, ignore_errors=True)
            # Links, which cost no room: a checkpoint's files are never changed, only deleted.
            shutil.copytree(self._fork(member), draft, copy_function=os.link)
            draft.rename(held)
        shutil.copy(theirs / "metrics.jsonl", ours / "metrics.jsonl")

    def _fork(self, member: Member) -> Path:
        return self.path / str(member.trunk) / "checkpoints" / str(member.at)

    def _passed_over(self, member: Member) -> int:
        """Sequences that the next attempt leaves out at the start: all those of one that failed."""
        own = sequences(member.run) if self.first_attempt(member).exists() else 0
        return own + (self._passed_over(self.members[member.trunk]) if member.trunk else 0)

    def _judged(self, member: Member, status: int) -> tuple[str, str]:
        """Status and reason of a process that ended so."""
        if status == 0:
            return FINISHED, ""
        if status in (
            128 + signal.SIGTERM,
            128 + signal.SIGINT,
            128 + signal.SIGHUP,
            -signal.SIGTERM,
        ):
            return INTERRUPTED, "stopped by a signal; it goes on where it was saved"
        if status < 0:
            return BROKEN, f"killed by {signal.Signals(-status).name}"
        said = [*output(self.path / member.name), f"exit status {status}"]
        sentences = [line for line in said if line.startswith("pretrain.launch: ")]
        reason = (sentences or said[-2:])[-1 if sentences else 0].removeprefix("pretrain.launch: ")
        # `hooks.NonFinite`
        return (DIVERGED if " steps in a row, up to step " in reason else BROKEN), reason


def output(directory: Path) -> list[str]:
    """The lines that a member's process said, empty ones left out."""
    file = directory / "output.txt"
    text = file.read_text("utf-8", "replace") if file.exists() else ""
    return [line for line in text.splitlines() if line.strip()]


def metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics that are whole, the last one first."""
    file = directory / "metrics.jsonl"
    for line in reversed(file.read_text().splitlines() if file.exists() else []):
        try:
            yield json.loads(line)
        except ValueError:  # being written just now
            continue


def last(directory: Path, name: str) -> float | None:
    """The last value of a metric, or None."""
    return next((line[name] for line in metrics(directory) if name in line), None)
