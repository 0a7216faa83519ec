"""Searches, from shapes: what is guessed of a layout, and which are compiled, by a compiler of our own."""

import functools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain import compiler, config
from pretrain.config import Mistake
from pretrain.kernels.fused import Fused
from pretrain.models import model, stack
from pretrain.models.stack import Recompute
from pretrain.planning import guess, search, topology
from pretrain.planning.guess import Estimate
from pretrain.sharding import Mesh, Rules

QKV = ("query", "key", "value")
ALL = (*QKV, "attention", "mlp_gate", "mlp_up")


@functools.cache
def estimate(name: str, target: str, seq_len: int, slices: int = 1) -> Estimate:
    return Estimate(replace(config.load(name), seq_len=seq_len), topology.parse(target, slices))


@functools.cache
def read(name: str) -> guess.Sizes:
    return guess.sizes(replace(config.load(name), seq_len=64))


# --- what is guessed ------------------------------------------------------------------------------


def test_the_sizes_of_a_model_are_those_of_its_parameters_and_named_activations():
    found = read("llama2_7b")
    block = 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
    assert (found.block, found.head) == (block, 32_000 * 4096)
    assert found.parameters == 32 * block + 2 * 32_000 * 4096 + 4096
    assert found.optimizer == 2 * 4 * found.parameters + 4  # and the count of AdamW
    assert found.features == dict.fromkeys((*QKV, "attention"), 4096) | dict.fromkeys(
        ("mlp_gate", "mlp_up"), 11_008
    )


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("gpt3_125m", dict.fromkeys((*QKV, "attention"), 768) | {"mlp_up": 3072}),
        ("rwkv4_169m", dict.fromkeys((*QKV, "attention"), 768) | {"mlp_up": 3072}),
        ("llama2_70b", {"query": 8192, "key": 1024, "value": 1024, "attention": 8192}),
    ],
)  # fmt: skip
def test_names_are_those_that_the_blocks_of_a_family_have(name, features):
    found = read(name).features
    assert {n: found[n] for n in features} == features
    assert ("mlp_gate" in found) == (name == "llama2_70b")
    assert all(set(names) <= set(found) for names in search.policies(tuple(found)))


def test_memory_of_a_layout_is_counted_by_hand():
    target, tokens, parts = topology.parse("v5p:64"), 256 * 4096 // 64, 64
    run = replace(config.load("llama2_7b"), batch=256, mesh=Mesh(fsdp=64))
    size, made = read("llama2_7b"), estimate("llama2_7b", "v5p:64", 4096)
    (found,) = made.of(run, [QKV])
    stream, wide = 2 * tokens * 4096, 2 * tokens * 11_008
    state = (4 * size.parameters * 2 + size.optimizer) / parts
    block = 6 * wide + 4 * stream + 6 * stream + 12 * size.block
    assert found.bytes == round(state + 32 * 4 * stream + block)
    (halves,) = made.of(replace(run, microbatches=2), [QKV])
    more = 4 * size.parameters / parts  # gradients, and their sum over microbatches
    assert halves.bytes == round(state + more + 32 * 2 * stream + block / 2 + 6 * size.block)
    assert halves.run.compute.remat == Recompute(save=QKV)
    assert target.limit > found.bytes


# As compiled, in GiB: docs/benchmarks.md.
@pytest.mark.parametrize(
    ("name", "target", "slices", "shape", "micro", "names", "compiled"),
    [
        ("llama2_7b", "v5e:16x16", 1, (1024, 2048), 1, QKV, 11.9),
        ("llama2_7b", "v5e:16x16", 1, (1024, 2048), 2, ALL, 14.5),
        ("llama2_7b", "v5p:64", 1, (256, 4096), 1, ALL, 48.9),
        ("llama2_70b", "v5p:8x8x8", 1, (2048, 4096), 1, (*QKV, "attention"), 82.6),
        ("llama2_70b", "v5p:8x8x8", 1, (2048, 4096), 4, ALL, 66.7),
        ("palm_540b", "v4:16x16x12", 2, (2048, 2048), 1, (*QKV, "attention", "mlp_gate"), 28.2),
        ("llama2_7b", "h100:4x8", 1, (1024, 4096), 1, (), 61.7),
        ("llama2_7b", "h100:4x8", 1, (1024, 4096), 2, (), 52.3),
        ("llama2_7b", "h100:4x8", 1, (1024, 4096), 4, ("attention", "mlp_gate", "mlp_up"), 70.6),
        ("llama2_7b", "h100:1x8", 1, (16, 4096), 1, ALL, 36.9),
        ("llama2_70b", "h100:8x8", 1, (128, 4096), 1, (), 36.3),
    ],
)  # fmt: skip
def test_memory_is_guessed_to_a_tenth_of_what_was_compiled(
    name: str, target: str, slices: int, shape: tuple[int, int], micro: int, names: Any,
    compiled: float, monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.setenv(compiler.SHARE_NAME, "0.9")
    made = estimate(name, target, shape[1], slices)
    run = config.load(name)
    mesh = run.mesh if slices > 1 else Mesh(fsdp=made.target.size)
    run = replace(run, batch=shape[0], seq_len=shape[1], microbatches=micro, mesh=mesh)
    (found,) = made.of(run, [names])
    assert found.bytes / 2**30 == pytest.approx(compiled, rel=0.1)


def test_zeros_of_a_second_stack_are_made_early_where_a_gpu_has_the_room(monkeypatch):
    run = replace(config.load("llama2_7b"), microbatches=8, mesh=Mesh(fsdp=32))
    target, found = topology.parse("h100:4x8"), dict[float, int]()
    for share in (0.5, 0.75, 1.0):
        monkeypatch.setenv(compiler.SHARE_NAME, str(share))
        made = Estimate(run, target)
        found[share] = next(made.of(run, [ALL])).bytes
        assert made.room == round(95 * share) / 100 * target.chip.hbm_bytes
    assert found[0.5] > 0.5 * target.chip.hbm_bytes  # what is needed, and no more
    assert found[0.75] == round(0.71 * target.chip.hbm_bytes)
    assert found[1.0] == round(0.95 * target.chip.hbm_bytes)


def test_what_is_kept_saves_time_and_costs_memory():
    run = replace(config.load("llama2_7b"), batch=256, mesh=Mesh(fsdp=64))
    guesses = list(estimate("llama2_7b", "v5p:64", 4096).of(run, [(), QKV, ALL]))
    assert [g.bytes for g in guesses] == sorted({g.bytes for g in guesses})
    assert [g.seconds for g in guesses] == sorted({g.seconds for g in guesses}, reverse=True)


def test_a_device_waits_for_sums_over_tensor_and_for_gathers_of_a_split_stream():
    made = estimate("llama2_7b", "v5p:64", 4096)
    run = replace(config.load("llama2_7b"), batch=256, mesh=Mesh(fsdp=32, tensor=2))
    stream, link = 2 * 256 * 4096 // 32 * 4096, 2 * made.target.chip.link_bandwidth
    weights = 4 * (32 * made.sizes.block + made.sizes.head) / 2
    # Forward and backward of both halves, and attention's again: each is two passes. Or a scatter, and
    # gathers before both halves, forward, again and backward.
    for stored, passes in [({}, 5 * 2), ({"residual": ("tensor",)}, 5 + 6)]:
        laid = replace(run, rules=Rules(**stored))
        waits = made.waits(laid, laid.mesh.sizes(64), made.rows(laid))
        sums = 32 * passes * stream / 2 / link
        assert waits == pytest.approx(sums + 2 * weights / made.target.wide)


def test_a_small_batch_waits_for_its_weights_as_often_as_it_has_microbatches():
    made = estimate("llama2_7b", "h100:4x8", 128)
    run = replace(config.load("llama2_7b"), batch=64, seq_len=128, mesh=Mesh(fsdp=32))
    weights = 32 * made.sizes.block + made.sizes.head
    for parts in (1, 2):
        (found,) = made.of(replace(run, microbatches=parts), [ALL])
        # Gathered forward and backward; gradients come back in fp32.
        assert found.seconds == pytest.approx(parts * (2 * 2 + 4) * weights / made.target.wide)


# --- what is compiled -----------------------------------------------------------------------------


class Clock:
    """Time that passes when something is compiled, and no other."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Compiler:
    """Compiles in a minute each; what it makes takes as long, and as much, as is said."""

    def __init__(
        self, clock: Clock, step: Callable[[Any], float], used: Callable[[Any], float]
    ) -> None:
        self.clock, self.step, self.used = clock, step, used
        self.runs: list[Any] = []

    def build(self, run: Any, target: Any, say: Any) -> Any:
        self.clock.now += 60
        self.runs.append(run)
        return run

    def of(self, target: Any, run: Any, price: Any) -> Any:
        used, step = self.used(run), self.step(run)
        fits = used <= target.limit
        made = SimpleNamespace(
            run=run,
            memory=SimpleNamespace(peak=int(used)) if fits else None,
            excess=None if fits else SimpleNamespace(used=int(used)),
        )
        return SimpleNamespace(compiled=made, cost=SimpleNamespace(step=step) if fits else None)


def searched(
    monkeypatch: Any, run: Any, minutes: float, *,
    step: Callable[[Any], float] = lambda run: 1.0, used: Callable[[Any], float] = lambda run: 2**30,
) -> tuple[Any, list[Any], list[str]]:  # fmt: skip
    """The plan that is found, the runs that were compiled, and what was said."""
    clock, lines, target = Clock(), list[str](), topology.parse("v5p:64")
    compiler = Compiler(clock, step, used)
    monkeypatch.setattr(search.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(search.compiled, "build", compiler.build)
    monkeypatch.setattr(search.report, "of", compiler.of)
    monkeypatch.setattr(type(target), "devices", lambda self: ())
    monkeypatch.setattr(
        search, "Estimate", lambda run, target: estimate("llama2_7b", "v5p:64", 4096)
    )
    try:
        found = search.best(run, target, minutes * 60, lines.append, None)
    except Mistake as mistake:
        found = mistake
    return found, compiler.runs, lines


@pytest.fixture
def llama() -> Any:
    return replace(config.load("llama2_7b"), batch=256, seq_len=4096)


@pytest.mark.parametrize(
    ("given", "compiled"),
    [
        (Mesh(fsdp=32, tensor=2), 2),  # 3 % slower than the best by guess: it may as well be faster
        (Mesh(fsdp=8, tensor=8), 1),  # much slower
    ],
)
def test_the_best_guess_and_a_near_layout_that_was_given_are_compiled_whatever_the_budget(
    given, compiled, monkeypatch, llama
):
    kept = replace(llama.compute, remat=Recompute(save=ALL))
    run = replace(llama, mesh=given, rules=Rules(residual_seq=("seq", "tensor")), compute=kept)

    def step(tried: Any) -> float:
        return 1.0 if tried.mesh == given else 2.0

    found, runs, lines = searched(monkeypatch, run, 0, step=step)
    assert len(runs) == compiled and runs[0].mesh.fsdp == 64
    assert found.compiled.run == runs[-1] and (runs[-1] == run) == (compiled == 2)
    assert sum(line.startswith(f"1. {3 - compiled}.00 s") for line in lines) == 1


def test_the_budget_is_kept_and_every_layout_is_announced_with_the_minutes_left(monkeypatch, llama):
    _, runs, lines = searched(monkeypatch, llama, 5.5)
    assert len(runs) == 5  # a sixth would end after it
    announced = [line for line in lines if line.endswith("minutes are left")]
    assert len(announced) == 5 and announced[0].startswith("1: fsdp 64; ")
    assert [line.split()[-4] for line in announced] == ["6", "4", "4", "2", "2"]
    laid = {(run.mesh, run.microbatches, run.rules) for run in runs}
    assert len(laid) == 5  # what fits is not tried again with less kept


def test_what_does_not_fit_is_tried_with_less_and_nothing_that_must_be_larger(monkeypatch, llama):
    estimates = estimate("llama2_7b", "v5p:64", 4096)
    limit = topology.parse("v5p:64").limit

    def used(run: Any) -> float:  # 50 GiB more than is guessed
        return next(estimates.of(run, [run.compute.remat.save])).bytes + 50 * 2**30

    found, runs, _ = searched(monkeypatch, llama, 60, used=used)
    assert used(runs[0]) > limit >= used(found.compiled.run)
    beyond = [(run.mesh, run.microbatches, run.rules) for run in runs if used(run) > limit]
    assert len(beyond) == len(set(beyond))


def test_a_search_without_a_layout_that_fits_is_a_mistake(monkeypatch, llama):
    found, runs, _ = searched(monkeypatch, llama, 2.5, used=lambda run: 2**40)
    # Nothing that differs from the first in what it keeps alone.
    assert isinstance(found, Mistake) and "raise --budget" in str(found) and len(runs) == 2
    assert runs[0].microbatches != runs[1].microbatches or runs[0].mesh != runs[1].mesh
    found, runs, _ = searched(monkeypatch, replace(llama, batch=7), 1)
    assert isinstance(found, Mistake) and "change the batch" in str(found) and not runs


def test_what_the_compiler_refuses_of_one_layout_is_said_and_of_the_first_is_the_end(
    monkeypatch, llama
):
    def refuses(run: Any) -> float:
        raise Mistake(f"no {run.microbatches} microbatches")

    found, _, lines = searched(monkeypatch, llama, 5.5, step=refuses)
    assert str(found) == "no 1 microbatches" and len(lines) == 2
    found, runs, lines = searched(
        monkeypatch, llama, 5.5, step=lambda run: refuses(run) if run.mesh.tensor > 1 else 1.0
    )
    assert found.compiled.run.mesh.fsdp == 64 and any(run.mesh.tensor > 1 for run in runs)
    assert "no 1 microbatches" in lines


def test_layouts_are_meshes_of_the_target_with_each_layout_of_the_stream(llama):
    target = topology.parse("v4:2x2x2", slices=2)
    found = list(search.layouts(replace(llama, batch=16), target))
    meshes = {run.mesh for run in found}
    assert meshes == {
        Mesh(replica=2, fsdp=4, tensor=2), Mesh(replica=2, fsdp=2, tensor=4),
        Mesh(replica=2, fsdp=1, tensor=8), Mesh(replica=2, fsdp=8),
    }  # fmt: skip
    streams = {(r.rules.residual, r.rules.residual_seq) for r in found if r.mesh.tensor == 2}
    assert streams == {((), ("seq",)), ((), ("seq", "tensor"))}
    assert {run.microbatches for run in found if run.mesh.fsdp == 8} == {1}
    for run in found:
        run.check_layout(run.mesh.sizes(16))
    odd = list(search.layouts(replace(llama, batch=16, seq_len=4098), target))
    streams = {(r.rules.residual, r.rules.residual_seq) for r in odd if r.mesh.tensor == 4}
    assert streams == {((), ("seq",)), (("tensor",), ("seq",))}


# --- what is written ------------------------------------------------------------------------------


def test_the_written_config_replaces_what_was_found_inside_of_the_one_that_was_given(tmp_path):
    base = config.load("llama2_7b")
    found = replace(
        base, mesh=Mesh(fsdp=8, tensor=2), rules=replace(base.rules, residual_seq=("seq", "tensor")),
        compute=replace(base.compute, remat=Recompute(save=("query",))),
    )  # fmt: skip
    path = tmp_path / "found.py"
    search.write(base, found, "llama2_7b.py", "v5e:16", path)
    assert config.load(str(path)) == found
    lines = [line.strip() for line in path.read_text().splitlines() if line.startswith("    ")]
    assert lines == [
        "base,",
        "compute=replace(base.compute, remat=replace(base.compute.remat, save=('query',))),",
        "mesh=replace(base.mesh, fsdp=8, tensor=2),",
        "rules=replace(base.rules, residual_seq=('seq', 'tensor')),",
    ]
    imports = [line for line in path.read_text().splitlines() if line.startswith("from")]
    assert imports == ["from dataclasses import replace", "from pretrain.config import load"]


def test_a_node_of_another_class_is_written_whole_with_its_imports(tmp_path):
    base = replace(config.load("llama2_7b"), compute=model.Compute())
    found = replace(base, compute=replace(base.compute, remat=stack.Remat(), attention=Fused()))
    path = tmp_path / "found.py"
    search.write(config.load("llama2_7b"), found, "llama2_7b.py", "v5e:16", path)
    assert config.load(str(path)) == found
    assert "from pretrain.models.stack import Remat" in path.read_text()
