"""The run directory: files that are whole or not there, and a lock that dies with its process."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config import Mistake
from pretrain.rundir import RunDirectory, absolute

HOLD = """
import sys
from pretrain.rundir import RunDirectory
with RunDirectory(sys.argv[1]).lock(print):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds the run directory `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_directory_held_by_a_live_process_is_refused_by_pid_and_host(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        try:
            with pytest.raises(Mistake) as refusal, RunDirectory(tmp_path).lock(pytest.fail):
                pass
            assert f"process {holder.pid} on {socket.gethostname()}" in str(refusal.value)
            assert str(tmp_path) in str(refusal.value)
        finally:
            holder.kill()


def test_a_killed_holder_frees_the_directory_and_the_next_one_says_so(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
    said: list[str] = []
    with RunDirectory(tmp_path).lock(said.append):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert len(said) == 1
    assert f"process {holder.pid} on" in said[0]


def test_a_lock_that_was_given_back_leaves_nothing_to_report(tmp_path: Path) -> None:
    for _ in range(2):
        with RunDirectory(tmp_path).lock(pytest.fail):
            pass
    with pytest.raises(RuntimeError), RunDirectory(tmp_path).lock(pytest.fail):
        raise RuntimeError
    with RunDirectory(tmp_path).lock(pytest.fail):
        pass


def test_only_process_zero_takes_the_lock_and_writes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, process=0).lock(pytest.fail):
        second = RunDirectory(tmp_path, process=1)
        with second.lock(pytest.fail):
            second.write_json("config.json", {})
    assert not (tmp_path / "config.json").exists()


def test_an_unsigned_lock_still_refuses(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock(pytest.fail):
        (tmp_path / "lock").write_text("")
        with (
            pytest.raises(Mistake, match="another process"),
            RunDirectory(tmp_path).lock(pytest.fail),
        ):
            pass


def test_json_comes_back_as_it_went_in(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new")
    run.write_json("config.json", {"a": [1, None, 1e-9, "ü"]})
    assert run.read_json("config.json") == {"a": [1, None, 1e-9, "ü"]}
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing past `size` bytes of any file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("config.json", 1)
    with files_up_to(1000), pytest.raises(Mistake, match=r"config\.json .*large.*bytes free"):
        run.write_json("config.json", "x" * 5000)
    assert run.read_json("config.json") == 1


def test_a_full_disk_at_the_lock_is_a_mistake(tmp_path: Path) -> None:
    with (
        files_up_to(0),
        pytest.raises(Mistake, match="lock cannot be written"),
        RunDirectory(tmp_path).lock(pytest.fail),
    ):
        pass


def test_a_path_that_cannot_be_a_directory_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(Mistake, match=f"{path} cannot be written"):
            RunDirectory(path).make()
        with pytest.raises(Mistake), RunDirectory(path).lock(pytest.fail):
            pass


def test_missing_and_broken_json_are_mistakes_that_name_the_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(Mistake, match=r"config\.json does not exist"):
        run.read_json("config.json")
    (tmp_path / "config.json").write_text('{"a": 1')
    with pytest.raises(Mistake, match=r"config\.json is not JSON .*line 1"):
        run.read_json("config.json")


def test_paths_become_absolute_and_remote_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(absolute("runs/x")) == "/runs/x"
    assert str(absolute("~/x")) == "/somewhere/x"
    assert os.fspath(absolute("gs://bucket/x")) == "gs://bucket/x"
