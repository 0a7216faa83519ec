"""A run of two processes is the run of one."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.launch import main as launch

CONFIG = """
from pathlib import Path
from pretrain.checkpoint import Checkpoint
from pretrain.data import Data, Files
from pretrain.evaluate import Evaluate
from pretrain.generate import Sample
from pretrain.models.llama import LLaMA
from pretrain.models.model import Compute
from pretrain.optim import AdamW
from pretrain.run import Run
from pretrain.schedules import Linear

here = Path(__file__).parent
config = Run(
    model=LLaMA(vocab=256, layers=2, d_model=32, heads=4, kv_heads=2, head_dim=8, d_ff=64),
    data=Data(source=Files(glob=(str(here / "text" / "*.txt"),)), held_out=0.2, cache=str(here / "cache")),
    optim=AdamW(peak_lr=1e-2, schedule=Linear(warmup=2)),
    steps=8, batch=8, seq_len=32, log_every=1, compile_cache=str(here / "compiled"),
    compute=Compute(dtype="float32"),
    checkpoint=Checkpoint(every=4, keep=9),
    evaluate=Evaluate(every=100), sample=Sample(every=100, tokens=4),
)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, tiny.py, and the text that it trains on."""
    place = tmp_path_factory.mktemp("runs")
    (place / "tiny.py").write_text(CONFIG)
    (place / "text").mkdir()
    for number in range(20):
        squares = " ".join(str(n * n) for n in range(number, 400 + number))
        (place / "text" / f"{number}.txt").write_text(squares)
    return place


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The directory of a run that nothing disturbed, on eight devices."""
    assert launch(["--config", str(place / "tiny.py"), "--run", str(place / "whole")]) == 0
    return place / "whole"


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def started(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run in a process of its own on eight fake devices."""
    command = [
        sys.executable,
        "-m",
        "pretrain.launch",
        "--config",
        str(place / "tiny.py"),
        *arguments,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place
    )


@pytest.mark.slow
def test_two_processes_are_one_and_resume(place: Path, finished: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def both(*arguments: str) -> None:
        pair = [
            started(
                place, "--run", str(tmp_path / "two"), "--cpu-devices", "4", *arguments,
                "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(index),
            )
            for index in range(2)
        ]  # fmt: skip
        said = [process.communicate(timeout=400)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], said

    both()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(finished), rtol=1e-6)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "8")
    both()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(finished), rtol=1e-6)
