"""The run directory: where its files are, who holds it, and how JSON gets into it whole.

    config.json      the resolved config
    metrics.jsonl    one object a logged step
    tensorboard/     event files
    checkpoints/     see `pretrain.checkpoint`
    lock             process id and host of the run that holds the directory

Everything in it is inert: no code is ever imported from a run directory. Paths may be remote
(`gs://...`); a lock needs a local or network file system.
"""

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from etils import epath

from pretrain.config import Mistake


class RunDirectory:
    """One run's files.

    `process` is the index of this process among those of the run: only process 0 locks and writes.
    """

    def __init__(self, path: epath.PathLike, process: int = 0) -> None:
        self.path = absolute(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self._process = process

    def make(self) -> None:
        """Create the directory and its parents. Raises Mistake where that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    @contextlib.contextmanager
    def lock(self, report: Callable[[str], None]) -> Iterator[None]:
        """Hold the directory, creating it if need be, until the block ends or the process dies.

        The lock is `flock`'s, so that no crash can leave it behind; the file's text only tells who.
        Taking over from a run that died is reported. Raises Mistake where a live process holds it,
        on this host or, over a network file system, on another.
        """
        if self._process != 0:
            yield
            return
        self.make()
        if _remote(self.path):
            report(f"{self.path} is remote and cannot be locked: start no second run on it.")
            yield
            return
        with _open(self.path / "lock") as file:
            _acquire(file, self.path, report)
            try:
                _sign(file, self.path)
                yield
            finally:
                # Emptied, so that the next run reports no death. Unlocked here and not by closing,
                # because a forked child would still have the file open.
                file.truncate(0)
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)

    def write_json(self, name: str, value: Any) -> None:
        """`write_json` of the file `name` in this directory, on process 0."""
        if self._process == 0:
            self.make()
            write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote. Raises Mistake where the file is missing or not JSON."""
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise Mistake(f"{path} does not exist: name a run's directory with --run.") from None
        except (OSError, ValueError) as error:
            raise Mistake(f"{path} is not JSON ({error}): bring it back from a copy.") from error


def absolute(path: epath.PathLike) -> epath.Path:
    """The path as Orbax requires it: `~` expanded and not relative; a remote one as it is."""
    path = epath.Path(path)
    return path if _remote(path) else path.expanduser().resolve()


def write_json(path: epath.Path, value: Any) -> None:
    """Write JSON so that a reader, or a crash, finds the old file or the new one, nothing else.

    Raises Mistake where the disk is full or read-only.
    """
    text = json.dumps(value, indent=1) + "\n"
    try:
        if _remote(path):
            path.write_text(text)  # an object store publishes an object when it is whole
            return
        part = Path(f"{os.fspath(path)}.tmp")
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: epath.Path, error: Exception) -> Mistake:
    """The sentence for a failed write: what, why, and the bytes that are free there."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        # TensorStore's text ends in "...: No space left on device [os_error_code='28']".
        reason = str(error).split("\n")[0].split(" [")[0].rsplit(": ", 1)[-1]
    free = free_bytes(path)
    room = "" if free is None else f", with {free:,} bytes free"
    return Mistake(
        f"{path} cannot be written ({reason}{room}): free some space or mend its permissions, "
        "or choose another directory with --run."
    )


def free_bytes(path: epath.Path) -> int | None:
    """Bytes that this user may still write on the disk of `path`; None where the path is remote."""
    if _remote(path):
        return None
    local = Path(path)
    return shutil.disk_usage(next(p for p in (local, *local.parents) if p.exists())).free


def _remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _open(path: epath.Path) -> FileIO:
    try:
        return Path(path).open(
            "a+b", buffering=0
        )  # no buffer that closing would try to write again
    except OSError as error:
        raise cannot_write(path, error) from error


def _acquire(file: FileIO, path: epath.Path, report: Callable[[str], None]) -> None:
    file.seek(0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Mistake(
            f"{path} is in use by {_holder(file.read())}: "
            "wait for that run or stop it, or choose another directory with --run."
        ) from None
    except OSError as error:
        report(f"{path} cannot be locked ({error.strerror}): start no second run on it.")
    if left := file.read():
        report(f"{path} was held by {_holder(left)}, which is gone: taking it over.")


def _sign(file: FileIO, path: epath.Path) -> None:
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        file.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        file.write(json.dumps(owner).encode())
    except OSError as error:
        raise cannot_write(path / "lock", error) from error


def _holder(text: bytes) -> str:
    """Who signed the lock file, in words; it may be read in the instant before it is signed."""
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
