"""A run from start to end: build, restore, loop, finish."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax

from pretrain import flops, sharding
from pretrain.checkpoint import Checkpointer
from pretrain.config import Mistake, Node, to_json
from pretrain.data import Corpus
from pretrain.data.loader import Evaluation, Loader
from pretrain.data.order import check_length
from pretrain.evaluate import evaluate
from pretrain.generate.generator import Generator, unsplit
from pretrain.generate.spelling import known
from pretrain.hooks import Hook, StopOnNonFinite, aside, every
from pretrain.interrupt import interruptions, named
from pretrain.metrics import Log
from pretrain.planned import beside_plan
from pretrain.program import Program
from pretrain.progress import Terminal
from pretrain.run import Run
from pretrain.rundir import RunDirectory
from pretrain.step import TrainState
from pretrain.throughput import Throughput, process_started
from pretrain.writers import open_writers


def train(run: Run, directory: RunDirectory, terminal: Terminal) -> int:
    """Train `run` in `directory`, from its newest checkpoint if there is one; the exit status.

    SIGTERM and Ctrl-C save and stop. Raises Mistake for whatever a user can mend.
    """
    mesh = run.mesh.build()
    with (
        memory_told(),
        sharding.use(mesh, run.rules),
        run.checkpoint.build(directory.checkpoints, terminal.say) as checkpoints,
    ):
        run.check_layout(mesh.shape)
        run.check_kernel(mesh.shape, jax.default_backend())
        if complete(run, directory, checkpoints):
            terminal.say(finished(directory, checkpoints))
            return 0
        program = Program(run, mesh)
        for line in banner(run, program, mesh):
            terminal.say(line)
        checkpoints.check_room(program.state)
        state, corpus = start(run, program, checkpoints, terminal)
        directory.write_json("config.json", to_json(run))
        first, bytes_per_token = int(state.step), corpus.train.bytes / len(corpus.train)
        opened = open_writers(directory, jax.process_index(), first, described(run))
        writers = [*beside_plan(opened, directory, terminal.say), terminal]
        with (
            loader(run, program, corpus).stream(first, run.steps) as stream,
            Log(
                writers, [StopOnNonFinite()], throughput(run, program), steps=run.steps,
                every=run.log_every, bytes_per_token=bytes_per_token, waited=stream.waited,
            ) as log,
        ):  # fmt: skip
            save, measure, write = activities(run, program, corpus, checkpoints, log, mesh)
            hooks = [
                every(
                    run.evaluate.every, before(run.steps, aside(log, measure(run.evaluate.batches)))
                ),
                every(run.sample.every, before(run.steps, aside(log, write))),
                every(run.checkpoint.every, aside(log, save)),
                *run.profile.hooks(directory.tensorboard),
            ]
            interrupted = interruptions()
            for step, batch in stream:
                state, metrics = program.train_step(state, batch)
                log.step(step + 1, metrics)
                for hook in hooks:
                    hook(step + 1, state)
                checkpoints.check()
                if interrupted(step + 1):
                    break
            aside(log, save)(int(state.step), state)
            stopped = interrupted(run.steps)
            for hook in [] if stopped else [measure(None), write]:
                aside(log, hook)(int(state.step), state)
        checkpoints.wait()
        return ended(stopped, int(state.step), directory, terminal)


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Raises Mistake where what is inside needs more memory than there is, in place of JAX's error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _, exhausted, reason = str(error).partition("RESOURCE_EXHAUSTED: ")
        if not exhausted:
            raise
        raise Mistake(
            f"The devices have too little memory ({reason.splitlines()[0].rstrip('.')}): take more "
            "microbatches, a smaller batch or seq_len, Recompute() for compute.remat, or more devices; "
            "pretrain.plan tells beforehand what TPUs and GPUs have room for."
        ) from error


def complete(run: Run, directory: RunDirectory, checkpoints: Checkpointer) -> bool:
    """Whether nothing is left to do: the last step is saved, and measured if text is held out."""
    last = checkpoints.latest() or 0
    if last != run.steps or not run.data.held_out:
        return last >= run.steps
    lines = directory.metrics.read_text().splitlines() if directory.metrics.exists() else []
    with contextlib.suppress(
        IndexError, ValueError
    ):  # what is damaged there is the writer's to say
        return "eval_loss" in (line := json.loads(lines[-1])) and line["step"] == last
    return False


def finished(directory: RunDirectory, checkpoints: Checkpointer) -> str:
    """What is said of a complete run."""
    steps = checkpoints.latest() or 0
    return (
        f"{directory.path} is complete, with {steps:,} steps: a larger --steps trains it further, and "
        "another --run begins anew"
    )


def start(
    run: Run, program: Program, checkpoints: Checkpointer, terminal: Terminal
) -> tuple[TrainState, Corpus]:
    """The state to go on from and the data, with the compiler at work at the same time."""
    rows = run.ramp.rows(checkpoints.latest() or 0, run.batch)[1]
    batch = program.batch(rows, run.seq_len, run.data.mask_documents)
    terminal.say("compiling   the train step; then comes the first line of metrics")
    pool = ThreadPoolExecutor()
    try:
        preparing = pool.submit(prepare, run, terminal.say)
        compiling = pool.submit(program.train_step.lower(program.state, batch).compile)
        found = restored(program, checkpoints)
        if found is None:
            initialise = pool.submit(program.initialise.lower().compile)
            corpus = preparing.result()
            state = initialise.result()()
        else:
            step, state = found
            terminal.say(f"resuming after step {step}")
            corpus = preparing.result()
        compiling.result()
    finally:
        # Whoever leaves early, for bad data or at a signal, must not wait for the compiler.
        pool.shutdown(wait=False, cancel_futures=True)
    return state, corpus


def restored(program: Program, checkpoints: Checkpointer) -> tuple[int, TrainState] | None:
    """The newest checkpoint and its step; beside parameters alone, as `convert` writes, a fresh rest."""
    if checkpoints.parts() != {"params"}:
        found = checkpoints.restore(program.state)
        return None if found is None else found[:2]
    weights = checkpoints.restore(program.state.params, within="params")
    return weights and (weights[0], replace(program.initialise(), params=weights[1]))


def prepare(run: Run, report: Callable[[str], None]) -> Corpus:
    """The tokenised data. Raises Mistake where the model lacks ids of it, or it is too short."""
    corpus = run.data.prepare(report)
    if corpus.tokenizer.vocab > run.model.vocab:
        raise Mistake(
            f"data.tokenizer has a vocabulary of {corpus.tokenizer.vocab} and model.vocab is "
            f"{run.model.vocab}: set model.vocab to {corpus.tokenizer.vocab} or more."
        )
    check_length(corpus.train, run.seq_len)
    return corpus


def loader(run: Run, program: Program, corpus: Corpus) -> Loader:
    """The batches of the run."""

    def rows(step: int) -> tuple[int, int]:
        first, count = run.ramp.rows(step, run.batch)
        return run.data.offset + first, count

    return Loader(
        corpus.train, seq_len=run.seq_len, seed=run.seed, mask_documents=run.data.mask_documents,
        batch_rows=rows, sharding=program.batch_sharding,
    )  # fmt: skip


def throughput(run: Run, program: Program) -> Throughput:
    """The clock of the run."""
    parameters = flops.count(program.dims, program.state.params, run.model.vocab).total
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    return Throughput(
        sequences=lambda step: run.ramp.rows(step, run.batch)[0],
        seq_len=run.seq_len,
        flops_per_token=flops.flops_per_token(run.model, parameters, run.seq_len),
        peak_flops=None if peak is None else peak * jax.device_count(),
        started=process_started(),
    )


def activities(
    run: Run, program: Program, corpus: Corpus, checkpoints: Checkpointer, log: Log, mesh: Any
) -> tuple[Hook, Callable[[int | None], Hook], Hook]:
    """What a run does beside training: save; measure so many batches, or all; write a sample."""
    generator = Generator(program.graph, run.model, run.compute, run.sample.choice)
    ids = corpus.tokenizer.encode_batch([run.sample.prompt])[0].tolist()
    prompt = [corpus.tokenizer.end, *ids]
    generator.room([prompt], run.sample.tokens)  # raises now what would end the run at some step

    def save(step: int, state: TrainState) -> None:
        checkpoints.save(step, state, {"sequences": run.ramp.rows(step, run.batch)[0]})

    def measure(batches: int | None) -> Hook:
        def hook(step: int, state: TrainState) -> None:
            held_out = Evaluation(
                corpus.held_out, seq_len=run.seq_len, mask_documents=run.data.mask_documents,
                batch=run.batch // run.microbatches, sharding=program.batch_sharding,
            )  # fmt: skip
            bytes_per_token = corpus.held_out.bytes / len(corpus.held_out)
            numbers = evaluate(program.eval_step, state.params, held_out, batches, bytes_per_token)
            log.write(step, numbers | run.forecast.band)
            verdict = run.forecast.verdict(numbers["eval_loss"])
            if batches is None and verdict:  # all of the text: the end of the run
                log.text(step, "forecast", verdict)

        return hook if len(corpus.held_out) else lambda step, state: None

    def write(step: int, state: TrainState) -> None:
        if not run.sample.tokens:
            return
        with sharding.use(mesh, unsplit(run.rules)):
            (ids,) = generator.write(state.params, [prompt], run.sample.tokens, run.seed)
        text = corpus.tokenizer.decode(known(corpus.tokenizer, ids))
        log.text(step, "sample", run.sample.prompt + text)

    return save, measure, write


def before(last: int, hook: Hook) -> Hook:
    """`hook` after every step but the last, which ends with more of the same."""
    return lambda step, state: hook(step, state) if step < last else None


def banner(run: Run, program: Program, mesh: jax.sharding.Mesh) -> Iterator[str]:
    """What is about to run: devices, mesh, kernels, sizes, length."""
    device, used = jax.devices()[0], {axis: n for axis, n in mesh.shape.items() if n > 1}
    parameters = flops.count(program.dims, program.state.params, run.model.vocab)
    cost = flops.flops_per_token(run.model, parameters.total, run.seq_len)
    tokens = run.ramp.rows(run.steps, run.batch)[0] * run.seq_len
    axes = ", ".join(f"{axis} {n}" for axis, n in used.items()) or "one device"
    devices = f"{jax.device_count()} x {device.device_kind}, {jax.process_count()} process(es)"
    length = f"{run.steps:,} steps of {run.batch} x {run.seq_len} tokens"
    yield f"devices     {devices}; mesh: {axes}"
    yield f"attention   {kernels(run, mesh)}; compute in {run.compute.dtype}"
    yield f"parameters  {parameters.total:,} ({parameters.embedding:,} in embeddings); {cost:,} FLOPs a token"
    yield f"length      {length}: {tokens:,} tokens, {tokens * cost:.2e} FLOPs"
    if run.optim.schedule.warmup > run.steps:
        yield f"note        the run ends within its {run.optim.schedule.warmup} steps of warm-up"


def kernels(run: Run, mesh: jax.sharding.Mesh) -> str:
    """The attention kernels that run, by the platform and what the layers ask of them."""
    demands = run.demands(mesh.shape, jax.default_backend())
    chosen = dict.fromkeys(run.compute.attention.on(demand).describe() for demand in demands)
    return "; ".join(chosen) or "none"


def described(node: Node, prefix: str = "") -> str:
    """The config, a line for each field and for the class of each node in it, for TensorBoard."""
    lines = []
    for name, value in vars(node).items():
        inner = isinstance(value, Node)
        lines.append(f"{prefix + name:<30} {type(value).__name__ if inner else repr(value)}")
        if inner:
            lines.append(described(value, f"{prefix}{name}."))
    return "\n".join(line for line in lines if line)


def ended(stopped: int, step: int, directory: RunDirectory, terminal: Terminal) -> int:
    """Say how the run ended; the exit status, 128 + the signal's number after one."""
    if not stopped:
        return 0
    terminal.say(
        f"stopped by {named(stopped)} after step {step}, saved; go on with --run {directory.path}"
    )
    return 128 + stopped
