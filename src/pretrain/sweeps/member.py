"""`Member`, a named run of a sweep, and the loading of sweep files.

A sweep file is Python that binds `sweep` to a list of members, and may bind `jobs` to how many of them a
machine should run at a time. It is found like a config: by its path, in ./configs/sweeps, or in the
installed package.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from pretrain import config
from pretrain.config import Mistake, Node, to_json
from pretrain.run import Run

FAILED = "failed"  # the folder of a sweep in which first attempts lie that failed
_NAME = re.compile(r"\w[\w.+-]*")


class Member(Node):
    """One run of a sweep."""

    name: str  # its run directory within the sweep's
    run: Run  # the whole run, as if it were alone
    trunk: str | None = (
        None  # an earlier member, equal up to step `at`, whose checkpoint it starts from
    )
    at: int = 0  # step of that checkpoint


def load(name: str) -> tuple[tuple[Member, ...], int]:
    """The members of a sweep file, checked, and how many to run at a time: 1 unless it says so.

    Raises Mistake for the first that cannot be run.
    """
    file = config.executed(name, "sweeps")
    bound, jobs = getattr(file, "sweep", None), getattr(file, "jobs", 1)
    if bound is None:
        raise Mistake(f"{name} does not bind `sweep`: end it with `sweep = ...`.")
    if not isinstance(jobs, int) or jobs < 1:
        raise Mistake(f"{name} binds `jobs` to {jobs!r}: make it 1 or more.")
    if not isinstance(bound, Sequence) or not all(isinstance(item, Member) for item in bound):
        raise Mistake(
            f"{name} binds `sweep` to a {type(bound).__name__}: it must be a list of Members."
        )
    if not bound:
        raise Mistake(f"{name} binds `sweep` to an empty list: give it a Member.")
    earlier: dict[str, Member] = {}
    for member in bound:
        try:
            check(member, earlier)
        except Mistake as mistake:
            raise Mistake(f"{name}, member {member.name!r}: {mistake}") from None
        earlier[member.name] = member
    return tuple(bound), jobs


def check(member: Member, earlier: Mapping[str, Member]) -> None:
    """Raises Mistake where the name cannot be a directory's, or the run or its trunk cannot be."""
    if not _NAME.fullmatch(member.name) or member.name == FAILED:
        raise Mistake(
            "a name is a directory's: letters, digits and _ . + -, beginning with a letter or digit, "
            f"and not {FAILED!r}."
        )
    if member.name in earlier:
        raise Mistake("two members have this name: give each its own.")
    member.run.check()
    member.run.parametrisation.build(member.run.model)  # which refuses what it has no rule for
    for cls in classes(to_json(member.run)):
        if not cls.startswith("pretrain."):
            raise Mistake(
                f"its run has a {cls}, which a process of its own could not find: define that class in "
                "the package, or train it with pretrain.launch."
            )
    if member.trunk is not None:
        check_trunk(member, earlier.get(member.trunk))


def check_trunk(member: Member, trunk: Member | None) -> None:
    """Raises Mistake where the trunk does not lead to this member, or keeps no checkpoint for it."""
    if trunk is None:
        raise Mistake(f"its trunk {member.trunk!r} is no member before it: list the trunk first.")
    if not 0 < member.at < member.run.steps:
        raise Mistake(
            f"it starts at step {member.at} of {member.run.steps}: make `at` 1 or more, and less."
        )
    saves = trunk.run.checkpoint
    kept = saves.keep_every is not None and member.at % saves.keep_every == 0
    if member.at != trunk.run.steps and not (kept and member.at < trunk.run.steps):
        raise Mistake(
            f"it starts at step {member.at} of {trunk.name!r}, which keeps no checkpoint of it: set the "
            f"trunk's checkpoint.every and checkpoint.keep_every to a divisor of {member.at}."
        )
    alone = {"steps", "optim.schedule", "checkpoint", "evaluate", "sample", "log_every", "profile"}
    for change in config.diff(trunk.run, member.run):
        if not any(change.startswith((f"{name}:", f"{name}.")) for name in alone):
            raise Mistake(
                f"it differs from its trunk {trunk.name!r} in {change}: a run goes on as it began, but for "
                "its schedule and its number of steps."
            )


def classes(value: object) -> Iterator[str]:
    """The names of all classes in a config's JSON."""
    if isinstance(value, dict):
        yield value["class"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from classes(item)
