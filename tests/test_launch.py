"""The command: what it says to bad input, what it loses (nothing), and how it ends."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from pretrain import checkpoint, diff, interrupt, launch, progress, train
from pretrain.config import Mistake
from small import COMMAND, Place, quickly

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
BANNER = ("devices", "attention", "parameters", "length")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where the runs of this file are; "whole" is one that nothing disturbed."""
    place = Place(tmp_path_factory.getbasetemp() / "small")
    if not place.checkpoints("whole"):
        assert place.launch("whole") == 0
    yield place
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def mistake(place: Place, capsys: pytest.CaptureFixture[str]) -> Any:
    """Launch with these options, get the sentence of the mistake."""

    def refused(*options: object, run: str = "refused") -> str:
        capsys.readouterr()
        assert place.launch(run, *options) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"pretrain\.launch: [^\n]+\.\n", error), error
        return error

    return refused


def test_a_run_says_plain_lines_and_leaves_its_files(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.launch("plain", "--steps", 4) == 0
    said, error = capsys.readouterr()
    assert error == ""
    assert [line.split()[0] for line in said.splitlines()[:5]] == [*BANNER, "compiling"]
    assert not CONTROL.search(said)
    files = {path.name for path in (place.folder / "plain").iterdir()}
    assert files == {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "lock"}
    assert (place.folder / "plain" / "lock").read_text() == ""
    assert place.checkpoints("plain") == [3, 4]
    losses = place.losses("whole")
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5


def test_the_last_step_is_measured_once_and_on_everything(place: Place) -> None:
    measured = [line for line in place.lines("whole") if "eval_loss" in line]
    assert [line["step"] for line in measured] == [4, 8]
    assert measured[0]["eval_tokens"] < measured[1]["eval_tokens"]


def test_a_sample_leaves_out_what_the_tokenizer_cannot_spell(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of 700 ids that has learned nothing writes hardly one of the 256 bytes."""
    options = ("--model.vocab", 700, "--steps", 1, "--sample.tokens", 30, "--sample.prompt", "ab")
    assert place.launch("unspelt", *options) == 0
    assert "sample at step 1:\n    ab" in capsys.readouterr().out


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config", "--run"]),
        (
            ["--config", "palm_tinny.py"],
            ["'palm_tinny.py'", "'palm_tiny.py'", "./configs", "package"],
        ),
        (["--confg", "palm_tiny.py"], ["--confg", "'--config'"]),
        (["--config", "palm_tiny.py", "--cpu-device", "8"], ["--cpu-device ", "'--cpu-devices'"]),
        (
            ["--config", "palm_tiny.py", "--optim.peek-lr", "1"],
            ["--optim.peek-lr", "--optim.peak-lr"],
        ),
        (["--config", "palm_tiny.py", "--steps", "many"], ["--steps", "'many'"]),
        (["--config", "palm_tiny.py", "--steps"], ["--steps"]),
        (["--config", "palm_tiny.py", "--cpu-devices", "0"], ["--cpu-devices is 0"]),
        (["--config", "palm_tiny.py", "--process", "one"], ["--process", "'one'"]),
        (["--config", "palm_tiny.py", "--process", "1"], ["--coordinator, --processes missing"]),
        (["--config", "palm_tiny.py", "stray.py"], ["stray.py"]),
    ],
)
def test_a_command_that_cannot_be_is_one_sentence(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(arguments) == 2
    said, error = capsys.readouterr()
    assert said == ""
    assert re.fullmatch(r"pretrain\.launch: [^\n]+\.\n", error), error
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("peak_lr", "peek_lr", ["mine.py, line 2", "'peek_lr'", "'peak_lr'"]),
        ("steps=8", "steps='8'", ["steps is '8'", "int"]),
        ("from pretrain.run", "from pretrain.runs", ["mine.py, line 11", "pretrain.runs"]),
        ("config = Run", "configuration = Run", ["mine.py does not bind `config`"]),
        ("config = Run", "config = 8\nother = Run", ["mine.py binds `config` to a int"]),
    ],
)
def test_a_config_file_that_cannot_be_is_named(
    place: Place, tmp_path: Path, old: str, new: str, words: list[str], capsys: Any
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(place.config.read_text().replace(old, new))
    assert launch.main(["--config", str(file), "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--mesh.fsdp 3", ["fsdp=3", "needs 3 devices", "are 8"]),
        ("--batch 12", ["batch / microbatches is 12", "mesh.fsdp=8", "multiple of 8"]),
        ("--mesh.tensor 4", ["model.heads is 2", "mesh.tensor=4", "1, 2"]),
        ("--mesh.seq 8 --seq-len 36", ["seq_len is 36", "mesh.seq=8"]),
        ("--data.source.glob nowhere/*.txt", ["'nowhere/*.txt' matches no file"]),
        ("--data.source.glob {empty}", ["empty.txt", "all empty"]),
        ("--data.source.glob {latin}", ["latin.txt is not UTF-8 at byte offset 3", "Skip()"]),
        ("--model.vocab 200", ["vocabulary of 256", "model.vocab is 200"]),
        ("--data.source.glob {short} --data.held-out 0", ["has 5 tokens", "seq_len + 1 = 33"]),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_trains(
    place: Place, tmp_path: Path, mistake: Any, options: str, words: list[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "short.txt").write_text("text")
    files = {name: tmp_path / f"{name}.txt" for name in ("empty", "latin", "short")}
    options = options.format(**files)
    error = mistake(*options.split())
    assert all(word in error for word in words), error
    assert not (place.folder / "refused" / "config.json").exists()


def test_a_directory_of_another_model_is_refused_and_keeps_what_it_has(
    place: Place, mistake: Any
) -> None:
    before = (place.folder / "whole" / "config.json").read_bytes()
    assert "model.layers: 2 -> 3" in mistake("--model.layers", 3, run="whole")
    assert "another model (PaLM -> LLaMA):" in family(place, mistake)
    assert (place.folder / "whole" / "config.json").read_bytes() == before


def family(place: Place, mistake: Any) -> str:
    """What is said to a LLaMA in the directory of a PaLM."""
    text = place.config.read_text().replace("models.palm import PaLM", "models.llama import LLaMA")
    llama = place.folder / "llama.py"
    llama.write_text(text.replace("PaLM(", "LLaMA(kv_heads=2, "))
    return mistake("--config", llama, run="whole")


def test_another_optimizer_is_refused_and_the_directory_keeps_its_config(
    place: Place, mistake: Any, tmp_path: Path, capsys: Any
) -> None:
    before = (place.folder / "whole" / "config.json").read_bytes()
    lion = tmp_path / "lion.py"
    lion.write_text(place.config.read_text().replace("AdamW", "Lion"))
    command = ["--config", str(lion), "--run", str(place.folder / "whole"), "--steps", "9"]
    assert quickly(command) == 2
    assert "another model or optimizer" in capsys.readouterr().err
    assert (place.folder / "whole" / "config.json").read_bytes() == before
    assert place.checkpoints("whole") == [3, 6, 8]


def test_a_directory_of_a_live_run_is_refused(place: Place, mistake: Any) -> None:
    hold = (
        "import sys; from pretrain.rundir import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).lock(print): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(place.folder / "whole")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            assert f"in use by process {holder.pid}" in mistake(run="whole")
        finally:
            holder.communicate()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no config"),
        ('{"class": "os.system"}', "os.system"),
        ('{"class": "pretrain.run.Run", "steps": 3}', "needs model"),
        ('{"class": "pretrain.sharding.Mesh", "fsdp": "x"}', "fsdp is 'x'"),
        ('{"class": "pretrain.sharding.Mesh", "data": 2}', "it must be a Run"),
    ],
)
def test_a_damaged_config_json_is_named(tmp_path: Path, text: str, words: str, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(text)
    assert launch.main(["--run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(tmp_path) in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "config.json").read_text() == text


def test_a_directory_without_a_run_is_named(tmp_path: Path, capsys: Any) -> None:
    assert launch.main(["--run", str(tmp_path)]) == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err


def test_a_full_disk_is_told_before_the_run_trains(
    mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1000)
    assert "1,000 free" in mistake("--steps", 9)


def test_too_little_memory_is_told_with_what_would_help() -> None:
    error = "RESOURCE_EXHAUSTED: Out of memory allocating 77369 bytes.\n1 in all."
    words = r"\(Out of memory allocating 77369 bytes\): take more microbatches"
    with pytest.raises(Mistake, match=words), train.memory_told():
        raise jax.errors.JaxRuntimeError(error)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), train.memory_told():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_disk_that_fills_up_ends_the_run_and_what_is_saved_goes_on(
    place: Place, mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 1 << 40, 1000])  # at the start, and at the saves after steps 3 and 6
    with monkeypatch.context() as full:
        full.setattr(checkpoint, "free_bytes", lambda path: next(free))
        assert "1,000 free" in mistake(run="filled")
    assert place.checkpoints("filled") == [3]
    assert place.launch("filled") == 0
    place.assert_same("filled", "whole")


# --- help, and other ways to ask --------------------------------------------------------------------


def test_help_lists_every_option_and_where_nobody_reads_it_ends(tmp_path: Path) -> None:
    warned = ["-W", "always::ResourceWarning"]  # Python's default is to ignore them
    command = [sys.executable, *warned, "-m", "pretrain.launch", "--help"]
    whole = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (whole.returncode, whole.stderr) == (0, "")
    for option in (
        "--config",
        "--run",
        "--cpu-devices",
        "--coordinator",
        "--processes",
        "--process",
    ):
        assert f"\n  {option}" in whole.stdout
    for option in (
        "--steps",
        "--optim.peak-lr",
        "--mesh.fsdp",
        "--checkpoint.every",
        "--log-every",
    ):
        assert f"│ {option} " in whole.stdout
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as read:
        assert read.stdout is not None and read.stderr is not None
        read.stdout.close()
        assert read.stderr.read() == b""
    assert read.returncode == 128 + signal.SIGPIPE


def test_two_configs_differ_in_lines_also_where_one_is_a_run(place: Place, capsys: Any) -> None:
    assert diff.main([str(place.config), str(place.folder / "whole")]) == 0
    assert capsys.readouterr().out == ""
    assert diff.main([str(place.config), "palm_tiny.py"]) == 0
    assert "\nseq_len: 32 -> 256\n" in capsys.readouterr().out
    assert diff.main([str(place.config), str(place.folder)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


def test_without_a_device_the_sentence_says_what_jax_was_asked_for(
    mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> int:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "process_index", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert "'cuda'" in mistake()


def test_a_cache_of_programs_that_cannot_be_made_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    launch.compile_cache(str(tmp_path / "file" / "programs"), said.append)
    assert len(said) == 1
    assert "compile_cache" in said[0]


# --- resuming ---------------------------------------------------------------------------------------


def test_a_complete_run_says_so_and_does_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (place.folder / "whole" / "metrics.jsonl").read_bytes()
    assert place.resume("whole") == 0
    said, error = capsys.readouterr()
    assert "whole is complete" in said
    assert len(said.splitlines()) == 1
    assert error == ""
    assert (place.folder / "whole" / "metrics.jsonl").read_bytes() == before


def copied(place: Place, run: str, steps: int) -> Path:
    """A copy of the whole run as a crash leaves it that comes after checkpoint `steps`."""
    shutil.copytree(place.folder / "whole", place.folder / run)
    for step in place.checkpoints("whole"):
        if step > steps:
            shutil.rmtree(place.folder / run / "checkpoints" / str(step))
    return place.folder / run


def test_the_directory_alone_resumes_to_the_same_bits(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(place, "alone", 3)
    assert place.resume("alone") == 0
    said = capsys.readouterr().out
    assert "resuming after step 3" in said
    assert "changed since" not in said
    place.assert_same("alone", "whole")


def test_more_steps_extend_a_run_and_what_changed_is_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(place, "extended", 8)
    assert place.resume("extended", "--steps", 9, "--seed", 0) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "changed since this run was last started: steps: 8 -> 9"
    assert not any("changed" in line for line in said[1:])
    assert place.losses("extended")[:8] == place.losses("whole")
    assert len(place.losses("extended")) == 9
    assert json.loads((place.folder / "extended" / "config.json").read_text())["steps"] == 9
    assert place.resume("extended") == 0
    assert "is complete" in capsys.readouterr().out


def test_fewer_steps_than_a_run_has_change_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(place, "fewer", 6)  # a crash: the last line of its metrics measures nothing
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert place.resume("fewer", "--steps", 4) == 0
    assert "fewer is complete, with 6 steps: " in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_an_unmeasured_last_step_is_measured(place: Place) -> None:
    metrics = copied(place, "unmeasured", 8) / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert place.launch("unmeasured") == 0
    place.assert_same("unmeasured", "whole")


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_goes_on(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (copied(place, "damaged", 6) / "checkpoints" / "6" / "state").rglob("*")
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert place.launch("damaged") == 0
    said = capsys.readouterr().out
    assert "checkpoints/6 cannot be used" in said
    assert "going back to checkpoint 3" in said
    place.assert_same("damaged", "whole")


def test_another_mesh_goes_on_with_equal_losses(place: Place) -> None:
    copied(place, "moved", 3)
    assert place.resume("moved", "--mesh.fsdp", 1, "--mesh.tensor", 2, "--mesh.data", 4) == 0
    assert place.losses("moved")[:3] == place.losses("whole")[:3]
    assert place.losses("moved") == pytest.approx(place.losses("whole"), rel=1e-5)
    assert place.losses("moved") != place.losses("whole")


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_to_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: Any, number: signal.Signals, status: int
) -> None:
    run, write = f"stopped{number}", progress.Lines.write

    def interrupting(self: progress.Lines, line: Any) -> None:
        write(self, line)
        if line["step"] == 1:  # it is told while step 2 is under way
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(progress.Lines, "write", interrupting)
        assert place.launch(run) == status
    assert signal.getsignal(number) is before
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == (
        f"stopped by {number.name} after step 2, saved; go on with --run {place.folder / run}"
    )
    assert said.err.startswith(f"{number.name}: ")
    assert place.checkpoints(run) == [2]
    assert place.launch(run) == 0
    place.assert_same(run, "whole")


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    program = """
import os, signal
from pretrain.interrupt import interruptions
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, as it should be
interrupted = interruptions()
assert interrupted(1) == 0
os.kill(os.getpid(), signal.SIGHUP)
assert interrupted(2) == interrupted(3) == signal.SIGHUP
os.kill(os.getpid(), signal.SIGTERM)
print("here", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("never")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "here\n")
    assert "Traceback" not in ended.stderr


def test_before_training_a_signal_undoes_and_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with interrupt.stoppable(lambda: ended.append(0)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [0, 143]
    assert capfd.readouterr().err == "pretrain.launch: stopped by SIGTERM before training began.\n"


def test_under_nohup_the_end_of_the_terminal_is_none_of_ours() -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))
        with interrupt.stoppable(lambda: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(place: Place) -> None:
    killed = place.start("killed", "--cpu-devices", 8)
    killed.wait_for("step 5/8")  # checkpoint 3 is there, or still being written
    killed.send(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    assert len(place.losses("killed")) >= 5
    assert place.launch("killed") == 0
    place.assert_same("killed", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_compiler_works_ends_at_once(
    place: Place, number: signal.Signals
) -> None:
    started = place.start(f"early{number}", "--compile-cache", "None", "--cpu-devices", 1)
    started.wait_for("length")
    started.send(number)
    assert started.end(5) == 128 + number
    assert started.said[-1] == f"pretrain.launch: stopped by {number.name} before training began."
    assert (place.folder / f"early{number}" / "lock").read_text() == ""


@pytest.mark.slow
def test_a_mistake_while_the_compiler_works_ends_at_once(place: Place) -> None:
    started = place.start(
        "bad", "--compile-cache", "None", "--cpu-devices", 1, "--data.source.glob", "none/*"
    )
    started.wait_for("pretrain.launch: data.source.glob 'none/*' matches no file.")
    assert started.end(5) == 2
    assert started.said[-1].startswith("pretrain.launch: ")


# --- terminals and pipes ----------------------------------------------------------------------------


def test_a_terminal_gets_a_bar(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(ours, 1 << 16):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        patched.setenv("TERM", "xterm-256color")
        copied(place, "terminal", 6)
        assert place.resume("terminal") == 0
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert "━" in text
    assert "step 8/8" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_a_reader_that_goes_away_is_said_once_and_writing_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        output = launch.Output(stream)  # type: ignore[arg-type]
        os.close(reader)
        for _ in range(3):
            print("a line", file=output, flush=True)  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "Broken pipe" in error


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_trains_to_its_end(place: Place) -> None:
    arguments = place.arguments("unread", "--cpu-devices", 8)
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("devices")
        process.stdout.close()
        assert len(process.stderr.readlines()) == 1
    assert process.returncode == 0
    place.assert_same("unread", "whole")
