"""What the tests of whole runs share: a corpus, a config file, and the command that trains on it."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from etils import epath

from pretrain import compiler, launch, manifest
from pretrain.tensors import TensorStore
from tiny import QUICK

# A constant schedule, so that the compiled step does not depend on the number of steps.
CONFIG = """
from pathlib import Path

from pretrain.checkpoint import Checkpoint
from pretrain.data import Bytes, Data, Files
from pretrain.evaluate import Evaluate
from pretrain.generate import Sample
from pretrain.models.model import Compute
from pretrain.models.palm import PaLM
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Constant

here = Path(__file__).parent
config = Run(
    model=PaLM(vocab=256, layers=2, d_model=32, heads=2, head_dim=16, d_ff=64),
    data=Data(
        source=Files(glob=(f"{here}/text/*.txt",)),
        tokenizer=Bytes(),
        held_out=0.1,
        cache=f"{here}/tokens",
    ),
    optim=AdamW(peak_lr=1e-2, schedule=Constant(warmup=2)),
    steps=8,
    batch=8,
    seq_len=32,
    compute=Compute(dtype="float32"),
    checkpoint=Checkpoint(every=3, keep=9),
    evaluate=Evaluate(every=4, batches=1),
    sample=Sample(tokens=0),
    log_every=1,
    compile_cache=f"{here}/programs",
)
"""


class Place:
    """A directory with a config file, its corpus, and its runs; the command finds them all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "small.py"
        if self.config.exists():
            return
        (folder / "text").mkdir(parents=True)
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(40)]
        for number in range(40):
            text = " ".join(draw.choices(words, k=100))
            (folder / "text" / f"{number}.txt").write_text(text)
        self.config.write_text(CONFIG)

    def arguments(self, run: str, *options: object) -> list[str]:
        """Of the command, for a run in the directory `run`."""
        where = ["--config", str(self.config), "--run", str(self.folder / run)]
        return [*where, *map(str, options)]

    def launch(self, run: str, *options: object) -> int:
        """Train in this process; the exit status."""
        return quickly(self.arguments(run, *options))

    def resume(self, run: str, *options: object) -> int:
        """Go on in this process, from the directory alone."""
        return quickly(["--run", str(self.folder / run), *map(str, options)])

    def start(self, run: str, *options: object) -> "Started":
        """Train in a process of its own."""
        return Started(self.arguments(run, *options))

    def lines(self, run: str) -> list[dict[str, Any]]:
        """What metrics.jsonl holds, without what depends on the clock or the memory."""
        text = (self.folder / run / "metrics.jsonl").read_text()
        clocked = ("second", "goodput", "mfu", "memory")
        return [
            {
                name: x
                for name, x in json.loads(line).items()
                if not any(map(name.__contains__, clocked))
            }
            for line in text.splitlines()
        ]

    def losses(self, run: str) -> list[float]:
        """The training loss of every step."""
        return [line["loss"] for line in self.lines(run) if "loss" in line]

    def checkpoints(self, run: str) -> list[int]:
        """The steps with a complete checkpoint."""
        found = (self.folder / run / "checkpoints").glob("*")
        return sorted(int(path.name) for path in found if (path / manifest.MANIFEST).exists())

    def state(self, run: str) -> dict[str, np.ndarray]:
        """Every tensor of the newest checkpoint."""
        newest = self.folder / run / "checkpoints" / str(self.checkpoints(run)[-1])
        whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {}
        for name, kind in json.loads((newest / "contents.json").read_text())["tensors"].items():
            dtype, _, shape = kind.rstrip("]").partition("[")
            sizes = tuple(int(size) for size in shape.split(",") if size)
            target[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)
        store = TensorStore(60)
        try:
            return jax.device_get(store.restore(epath.Path(newest / "state"), target))
        finally:
            store.close()

    def assert_same(self, one: str, other: str) -> None:
        """Two runs left the same lines and the same state, to the last bit."""
        assert self.lines(one) == self.lines(other)
        ours, theirs = self.state(one), self.state(other)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), name


def quickly(arguments: list[str]) -> int:
    """The command, with programs that are compiled without optimisation."""
    with mock.patch.object(compiler, "cpu", lambda: QUICK):
        return launch.main(arguments)


COMMAND = f"""
from pretrain import compiler, launch
compiler.cpu = lambda: {QUICK}
launch.leave()
"""


class Started:
    """The command in a process of its own, as `quickly`, and what it says."""

    def __init__(self, arguments: list[str]) -> None:
        self.said: list[str] = []
        self._over = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._news:
                    self.said.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def wait_for(self, start: str, seconds: float = 240) -> None:
        """Until it says a line that starts so."""

        def heard() -> bool:
            return any(line.startswith(start) for line in self.said)

        with self._news:
            self._news.wait_for(lambda: heard() or self._over, seconds)
        assert heard(), self.said

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self, seconds: float = 240) -> int:
        """Wait for its end; the exit status. It is killed if it lasts longer."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        finally:
            self._reader.join()
