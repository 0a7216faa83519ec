"""Search: the fastest mesh, rematerialisation and microbatches for a topology.

A guess from shapes (`guess.py`) ranks every layout that divides; the best are compiled, in that order,
while the budget lasts, and ranked by what the compiler makes of them.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.config import Mistake, Node
from pretrain.describe import binary
from pretrain.models.stack import SAVED, Recompute
from pretrain.planning import compiled, report
from pretrain.planning.guess import Estimate, Guess, again, sizes
from pretrain.planning.memory import kept
from pretrain.planning.report import Plan
from pretrain.planning.target import Target
from pretrain.run import Run
from pretrain.sharding import Mesh, Rules, use

# Activations that are kept together or not at all: keys and values are alike.
KEPT = (("query",), ("key", "value"), ("attention",), ("mlp_gate",), ("mlp_up",))
MICROBATCHES = (1, 2, 4, 8, 16)
# How the residual stream may lie where `tensor` splits what is inside of blocks: whole, or split along
# its positions, or along its features where positions do not divide.
WHOLE = {"residual": (), "residual_seq": ("seq",)}
POSITIONS, FEATURES = {"residual_seq": ("seq", "tensor")}, {"residual": ("tensor",)}
CLOSE = 1.1  # guesses that are nearer are not told from each other: they are off by a tenth
TENSOR = 32  # devices at most, over which heads and feed-forward are split


def best(
    run: Run, target: Target, budget: float, say: Callable[[str], None], price: float | None
) -> Plan:
    """The fastest plan that fits, of those that `budget` seconds are enough to compile.

    The layout with the best guess is compiled whatever the budget, and so is that of the run itself where
    guesses cannot tell it from the best: what is found is as good as what was given. Raises Mistake where
    nothing that was compiled fits.
    """
    target.devices()  # raises where there is no compiler, which no layout could mend
    estimate = Estimate(run, target)
    guesses = ranked(run, target, estimate)
    if not guesses:
        raise Mistake(
            f"no layout of {run.batch} sequences that fits divides over {target}: change the batch, or "
            "take more chips."
        )
    say(f"{len(guesses)} layouts divide and seem to fit; {guesses[0].seconds:.2f} s at best")
    trials = Trials(target, time.monotonic() + budget, say, price)
    given = [g for g in as_given(run, target, estimate) if g.seconds < CLOSE * guesses[0].seconds]
    for guess in [guesses[0], *given]:
        trials.compile(guess)
    for guess in itertools.takewhile(lambda _: not trials.over(), guesses[1:]):
        trials.compile(guess)
    return trials.fastest()


@dataclass
class Trials:
    """What was compiled of a search."""

    target: Target
    ends: float  # by `time.monotonic`
    say: Callable[[str], None]
    price: float | None
    found: list[tuple[Guess, Plan]] = field(default_factory=list)
    longest: float = 0.0  # seconds that one took

    def over(self) -> bool:
        """Whether another compilation would end after the budget."""
        return time.monotonic() + self.longest > self.ends

    def compile(self, guess: Guess) -> None:
        """Compile a layout, unless others tell that it will not fit or is slower."""
        if any(
            alike(guess, other) and self.tells(guess, other, plan) for other, plan in self.found
        ):
            return
        left, started = max(0.0, self.ends - time.monotonic()), time.monotonic()
        self.say(f"{len(self.found) + 1}: {guess}; {left / 60:.0f} minutes are left")
        try:
            plan = report.of(
                self.target, compiled.build(guess.run, self.target, self.say), self.price
            )
        except Mistake as mistake:  # of this layout, where others were compiled
            if not self.found:
                raise
            self.say(str(mistake))
            return
        self.longest = max(self.longest, time.monotonic() - started)
        self.found.append((guess, plan))
        self.say(
            f"{len(self.found)}: {said(plan)}; the guess was {guess.seconds:.2f} s, "
            f"{binary(guess.bytes)}"
        )

    def tells(self, guess: Guess, other: Guess, plan: Plan) -> bool:
        """Whether a plan of an alike layout that came before tells that this one is of no use.

        One that fits keeps more, and computes less again. One that does not fit says by how much
        guesses of its memory are off.
        """
        excess = plan.compiled.excess
        return excess is None or guess.bytes - other.bytes + excess.used > self.target.limit

    def fastest(self) -> Plan:
        """The fastest that fits, once the ranking is said. Raises Mistake where none does."""
        fitting = [(plan.cost.step, guess, plan) for guess, plan in self.found if plan.cost]
        if not fitting:
            raise Mistake(
                f"none of the {len(self.found)} layouts that were compiled fits: raise --budget."
            )
        order = sorted(fitting, key=lambda trial: trial[0])
        for place, (_, guess, plan) in enumerate(order, 1):
            self.say(f"{place}. {said(plan)}: {guess}")
        return order[0][2]


def said(plan: Plan) -> str:
    """The time and the memory of a step, or by how much it does not fit."""
    memory, excess = plan.compiled.memory, plan.compiled.excess
    if plan.cost and memory:
        return f"{plan.cost.step:.2f} s, {binary(memory.peak)}"
    return f"does not fit, {binary(excess.used)}" if excess else "does not fit"


def alike(one: Guess, other: Guess) -> bool:
    """Whether two layouts differ in nothing but what they keep."""
    return layout_of(one.run) == layout_of(other.run)


def layout_of(run: Run) -> tuple[Mesh, Rules, int]:
    """Mesh, rules and microbatches."""
    return run.mesh, run.rules, run.microbatches


def ranked(run: Run, target: Target, estimate: Estimate | None = None) -> list[Guess]:
    """Every layout that divides and seems to fit, the fastest by guess first."""
    estimate = estimate or Estimate(run, target)
    choices = policies(tuple(estimate.sizes.features))
    guesses = (guess for each in layouts(run, target) for guess in estimate.of(each, choices))
    return sorted((g for g in guesses if g.bytes < target.limit), key=lambda g: g.seconds)


def as_given(run: Run, target: Target, estimate: Estimate) -> Iterator[Guess]:
    """The run as it is, where it divides."""
    remat = run.compute.remat
    if isinstance(remat, Recompute) and divides(run, target.size):
        mesh = Mesh(**run.mesh.sizes(target.size))
        yield from estimate.of(replace(run, mesh=mesh), [remat.save])


def policies(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What may be kept of activations with these names, from nothing to all."""
    groups = [group for group in KEPT if set(group) <= set(names)]
    chosen = itertools.chain.from_iterable(
        itertools.combinations(groups, n) for n in range(len(groups) + 1)
    )
    return [tuple(itertools.chain.from_iterable(each)) for each in chosen]


def layouts(run: Run, target: Target) -> Iterator[Run]:
    """Meshes of fsdp and tensor, layouts of the residual stream, and microbatches, that divide."""
    within = target.size // target.slices
    parts = [n for n in MICROBATCHES if possible(replace(run, microbatches=n).check)]
    for tensor in (n for n in range(1, TENSOR + 1) if within % n == 0):
        mesh = Mesh(replica=target.slices, fsdp=within // tensor, tensor=tensor)
        split = FEATURES if run.seq_len % tensor else POSITIONS
        for stream in (WHOLE, WHOLE | split) if tensor > 1 else (WHOLE,):
            rules = replace(run.rules, **stream)
            for micro in parts:
                changed = replace(run, mesh=mesh, rules=rules, microbatches=micro)
                if possible(changed.check_layout, mesh.sizes(target.size)):
                    yield changed


def divides(run: Run, devices: int) -> bool:
    """Whether the run can be laid out on so many devices."""
    return possible(run.check) and possible(lambda: run.check_layout(run.mesh.sizes(devices)))


def possible(check: Callable[..., None], *arguments: Any) -> bool:
    """Whether a check finds nothing to mend."""
    try:
        check(*arguments)
    except Mistake:
        return False
    return True


def smaller(run: Run, mesh: Any, over: int) -> Iterator[tuple[str, Run]]:
    """Changes that free at least `over` bytes by shapes, the cheapest first; at most three."""
    options, size = list[tuple[float, str, Run]](), sizes(run)
    choices = policies(tuple(size.features))
    with use(mesh, run.rules):
        now = kept(run)
        names = run.compute.remat.save if isinstance(run.compute.remat, Recompute) else SAVED
        for micro in (run.microbatches, 2 * run.microbatches, 4 * run.microbatches):
            for save in [names, *(p for p in choices if set(p) < set(names))]:
                compute = replace(run.compute, remat=Recompute(save=save))
                changed = replace(run, compute=compute, microbatches=micro)
                freed = math.inf if now is None else now - (kept(changed) or 0)
                if freed < over or not divides(changed, mesh.size):
                    continue
                lost = again(size, run.model, save)
                words = f"compute.remat.save {' '.join(save) or '()'} and microbatches {micro}"
                options.append((lost * (1 + 0.05 * micro), words, changed))
    yield from ((words, changed) for _, words, changed in sorted(options, key=lambda o: o[0])[:3])


# --- the config that was found --------------------------------------------------------------------


def write(base: Run, found: Run, name: str, target: str, path: Path) -> None:
    """A config file that binds `base` with the fields in which `found` differs, and no other."""
    changes = dict(changed(base, found, "base"))
    imports = sorted({line for value, _ in changes.values() for line in needed(value)})
    values = "".join(f"    {field}={text},\n" for field, (_, text) in changes.items())
    path.write_text(
        f'"""{name} as `pretrain.plan --search` found it fastest on {target}."""\n\n'
        "from dataclasses import replace\n\n"
        "from pretrain.config import load\n"
        + "".join(imports)
        + f"\nbase = load({name!r})\nconfig = replace(\n    base,\n{values})\n"
    )


def changed(before: Any, after: Any, path: str) -> Iterator[tuple[str, tuple[list[Any], str]]]:
    """By the fields that differ: values that are new, and the field's value as Python.

    A node of the same class as before is the node at `path` with what differs in it.
    """
    for name in (each.name for each in dataclasses.fields(after)):
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if isinstance(new, Node) and type(old) is type(new):
            inner = dict(changed(old, new, f"{path}.{name}"))
            parts = ", ".join(f"{field}={text}" for field, (_, text) in inner.items())
            values = [value for found, _ in inner.values() for value in found]
            yield name, (values, f"replace({path}.{name}, {parts})")
        else:
            yield name, ([new], repr(new))


def needed(value: Any) -> Iterator[str]:
    """Imports of the classes in a value."""
    if isinstance(value, Node):
        yield f"from {type(value).__module__} import {type(value).__qualname__}\n"
        for field in dataclasses.fields(value):  # type: ignore[arg-type]  # Node itself has no fields
            yield from needed(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from needed(each)
