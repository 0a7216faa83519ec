"""A run from start to end: build, restore, loop, finish."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from pretrain import flops, sharding
from pretrain.config import Mistake
from pretrain.data import Corpus
from pretrain.data.loader import Evaluation, Loader
from pretrain.evaluate import evaluate
from pretrain.generate import Generator
from pretrain.program import Program
from pretrain.run import Run
from pretrain.rundir import RunDirectory

Report = Callable[[str], None]


def train(run: Run, directory: RunDirectory, report: Report) -> int:
    """Train `run` in `directory`, from its newest checkpoint if it has one; the exit status.

    Raises Mistake for whatever a user can mend.
    """
    mesh = run.mesh.build()
    run.check_layout(mesh.shape)
    with (
        sharding.use(mesh, run.rules),
        run.checkpoint.build(directory.checkpoints, report) as checkpoints,
        interruptions() as interrupted,
    ):
        program = Program(run, mesh)
        corpus, state = start(run, program, checkpoints, report)
        loader = Loader(corpus.train, seq_len=run.seq_len, seed=run.seed, mask_documents=run.data.mask_documents, batch_rows=lambda step: run.ramp.rows(step, run.batch), sharding=program.batch_sharding)
        t0=time.time(); n=0
        with loader.stream(int(state.step), run.steps) as stream:
            for step, batch in stream:
                state, metrics = program.train_step(state, batch)
                if step<3 or step%20==0:
                    l=float(metrics['loss']); print(step, l, float(metrics['grad_norm']), time.time()-t0, flush=True)
    return 0


def start(run, program, checkpoints, report):
    """Compile, open the data and restore or initialise, as far as possible at the same time."""
    with ThreadPoolExecutor(3) as pool:
        rows = run.ramp.rows(0, run.batch)[1]
        preparing = pool.submit(run.data.prepare, report)
        init = program.initialise.lower(); a=pool.submit(init.compile)
        batch = program.batch(rows, run.seq_len, run.data.mask_documents)
        b=pool.submit(program.train_step.lower(program.state, batch).compile)
        restored = checkpoints.restore(program.state) if checkpoints.steps() else None
        a.result()
        state = restored[1] if restored else program.initialise()
        b.result()
        corpus = preparing.result()
    return corpus, state


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], int | None]]:
    """SIGTERM and the first Ctrl-C are only noted: the call yields the signal's number, or None."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
