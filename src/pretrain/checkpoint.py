"""Checkpoints: the state, the step and the data position, verified when read.

    checkpoints/
      1000/
        contents.json    every tensor's name, shape and dtype; and `extra`, what the host counts
        state/           the tensors, as Orbax writes them
        manifest.json    length and checksum of every file above; written last

Tensors have one name on disk whatever the mesh and the number of hosts: the path of keys and field
names in the state, "params/layers/attention/wq_DNH". A directory without a manifest was being
written when the run stopped. It is never read, though Orbax may have finished its part, because
nothing vouches for it.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from pretrain import manifest
from pretrain.config import Mistake, Node
from pretrain.rundir import absolute, cannot_write, free_bytes, write_json
from pretrain.tensors import TensorStore, described, differences, named, size

CONTENTS = "contents.json"
_SAID = 400  # bytes of a text that processes tell each other


class Checkpoint(Node):
    """When to save the state, and how many saves to keep."""

    every: int = 1000  # steps between checkpoints; SIGTERM and the last step save one too
    keep: int = 3  # newest checkpoints that stay on disk
    keep_every: int | None = None  # checkpoints at multiples of this many steps stay for good
    timeout: int = 3600  # seconds after which a checkpoint that is still being written has failed

    def check(self) -> None:
        """Raises Mistake where a field is out of range, or `keep_every` misses some saves."""
        for name in ("every", "keep", "timeout"):
            if getattr(self, name) < 1:
                raise Mistake(f"checkpoint.{name} is {getattr(self, name)}: make it 1 or more.")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.every):
            raise Mistake(
                f"checkpoint.keep_every is {self.keep_every} and checkpoint.every is {self.every}: "
                f"make the first a multiple of the second, such as {10 * self.every}."
            )

    def build(self, directory: epath.PathLike, report: Callable[[str], None]) -> "Checkpointer":
        """The runtime object that writes to and reads from `directory`."""
        return Checkpointer(directory, self, report)


class Checkpointer:
    """Writes and reads one run's checkpoints; leaving its `with` block waits for the last one.

    In a run of several processes every process calls every method, in the same order, on a
    directory that all of them see. `report` gets one sentence for each thing that a person should
    know and that does not stop the run, perhaps from another thread.
    """

    def __init__(
        self, directory: epath.PathLike, node: Checkpoint, report: Callable[[str], None]
    ) -> None:
        self._directory = absolute(directory)
        self._node = node
        self._report = report
        self._store: TensorStore | None = None
        self._thread: threading.Thread | None = None
        self._failure: Mistake | None = None
        self._held: int | None = None  # the step that was saved or restored last
        self._unreadable: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Mistake as mistake:
            if error is None:
                raise
            # The error that ends the block is the one to raise: a failed save must not hide it.
            self._report(str(mistake))

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Save `state`, a pytree of arrays, and `extra`, a JSON object, as checkpoint `step`.

        Returns when the arrays have been copied to the host, so that the next step may donate
        them; the rest happens in the background. Waits for the save before, if that is still going
        on. The step that was saved or restored last is not saved again. Raises Mistake where the
        disk cannot hold the checkpoint, and where the save before failed.
        """
        self.wait()
        if step == self._held:
            return
        self.check_room(state)
        directory, tensors = self._path(step), named(state)
        try:
            if jax.process_index() == 0:
                if directory.exists():
                    manifest.remove(directory)
                directory.mkdir(parents=True)
                contents = {"step": step, "tensors": described(tensors), "extra": dict(extra)}
                write_json(directory / CONTENTS, contents)
            self._open().save(directory / "state", tensors)
        except (OSError, ValueError) as error:
            raise self._failed(directory, error) from error
        self._held = step
        self._thread = threading.Thread(target=self._finish, args=(step,), name="checkpoint")
        self._thread.start()

    def check_room(self, state: Any) -> None:
        """Raises Mistake where the disk has no room for `state` (arrays or shapes): ask early."""
        needed, free = size(named(state)), free_bytes(self._directory)
        if free is not None and free < needed:
            raise Mistake(
                f"A checkpoint takes {needed:,} bytes and {self._directory} has {free:,} free: "
                "free some space or choose another directory with --run."
            )

    def check(self) -> None:
        """Raises Mistake where the save in the background has failed; free, so ask each step."""
        failure, self._failure = self._failure, None
        if failure is not None:
            self._held = None
            raise failure

    def wait(self) -> None:
        """Wait until the last save is complete on disk. Raises Mistake where it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Wait for the last save and let its threads go. Raises Mistake where it failed."""
        try:
            self.wait()
        finally:
            if self._store is not None:
                self._store.close()
                self._store = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; their checksums are not looked at."""
        return [step for step in self._directories() if manifest.complete(self._path(step))]

    def latest(self) -> int | None:
        """The newest step with a complete checkpoint; its checksums are not looked at."""
        return max(self.steps(), default=None)

    def parts(self) -> set[str]:
        """What of a state the newest checkpoint holds: "params", "optimizer", ..."""
        step = self.latest()
        if step is None:
            return set()
        try:
            return {name.partition("/")[0] for name in self._contents(step)["tensors"]}
        except (OSError, ValueError, KeyError):  # `restore` will say so
            return set()

    def restore(self, target: Any, within: str = "") -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, extra) of the newest checkpoint whose checksums hold, or None.

        `target` is the state's pytree with a `jax.ShapeDtypeStruct` for each array, each with a
        concrete sharding (`sharding.placed`), on any mesh. With `within` it is a part of the state:
        `within="params"` reads the parameters alone.

        A newer checkpoint that cannot be used is reported; nothing on disk is changed. Where
        nothing is there but a first save that was interrupted, the run has no checkpoint yet:
        reported, and None. Raises Mistake where every checkpoint is damaged, and where the one to
        restore holds other tensors than `target`, by name, shape or dtype.
        """
        self.wait()
        faults: dict[int, str] = {}
        step = self._newest(faults)
        while step is not None:
            fault = _first_said(self._fault(step))
            if not fault:
                self._unreadable, self._held = set(faults), step
                return step, *self._read(step, target, within)
            faults[step] = fault
            older = self._newest(faults)
            then = "no older one is there" if older is None else f"going back to checkpoint {older}"
            self._report(f"Checkpoint {self._path(step)} cannot be used ({fault}): {then}.")
            step = older
        damaged = [step for step, fault in faults.items() if fault != manifest.INCOMPLETE]
        if damaged:
            raise Mistake(
                f"No checkpoint in {self._directory} can be used, the newest being {damaged[0]} "
                f"({faults[damaged[0]]}): bring one back from a copy, or start again in another "
                "directory with --run."
            )
        return None

    def _open(self) -> TensorStore:
        if self._store is None:
            self._store = TensorStore(self._node.timeout)
        return self._store

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _directories(self) -> list[int]:
        """Steps that have a directory, ascending, whatever is in it."""
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def _finish(self, step: int) -> None:
        """In the background: wait for the tensors, write the manifest, delete what is not kept."""
        directory, store = self._path(step), self._open()
        process, processes = jax.process_index(), jax.process_count()
        try:
            store.finish()
            manifest.write_part(directory, process, processes)
            store.barrier()
            if process == 0:
                manifest.join(directory, processes)
                self._unreadable.discard(step)
                self._prune(step)
        except Exception as error:  # whatever Orbax raises: it stops the run at the next `check`
            self._failure = self._failed(directory, error)

    def _failed(self, directory: epath.Path, error: Exception) -> Mistake:
        """The sentence for a failed save, whose remains go: they would keep a full disk full."""
        mistake = error
        if not isinstance(mistake, Mistake):
            mistake = cannot_write(directory, error)
            mistake.__cause__ = error
        if jax.process_index() == 0 and not manifest.complete(directory):
            with contextlib.suppress(OSError):
                manifest.remove(directory)
        return mistake

    def _prune(self, newest: int) -> None:
        """Delete what is older than `newest`, which is complete by now, and not to be kept."""
        steps = [step for step in self.steps() if step not in self._unreadable]
        kept = set(steps[-self._node.keep :])
        if self._node.keep_every is not None:
            kept |= {step for step in steps if step % self._node.keep_every == 0}
        old = [step for step in self._directories() if step < newest and step not in kept]
        for directory in map(self._path, old):
            try:
                manifest.remove(directory)
            except OSError as error:
                self._report(f"{directory} cannot be deleted ({error}): delete it by hand.")

    def _newest(self, tried: Mapping[int, str]) -> int | None:
        """The newest step that was not tried yet, as process 0 sees the directory."""
        untried = [step for step in self._directories() if step not in tried]
        mine = jax.process_index() == 0 and untried
        said = _first_said(str(untried[-1]) if mine else "")
        return int(said) if said else None

    def _fault(self, step: int) -> str:
        """What this process finds wrong with a checkpoint, in words, or ""."""
        if fault := manifest.fault(self._path(step), jax.process_index(), jax.process_count()):
            return fault
        try:
            held = self._contents(step)["step"]
        except (OSError, ValueError, KeyError):  # another process's share, which will say so too
            return f"{CONTENTS} is damaged"
        return "" if held == step else f"it is a copy of checkpoint {held}"

    def _contents(self, step: int) -> dict[str, Any]:
        return json.loads((self._path(step) / CONTENTS).read_text())

    def _read(self, step: int, target: Any, within: str) -> tuple[Any, dict[str, Any]]:
        contents, wanted = self._contents(step), named(target, within)
        inside = f"{within}/" if within else ""
        held = {name: kind for name, kind in contents["tensors"].items() if name.startswith(inside)}
        for difference in differences(held, described(wanted)):
            raise Mistake(
                f"Checkpoint {self._path(step)} is of another model or optimizer ({difference}): "
                "use the config that the run was started with, or another directory with --run."
            )
        tensors = self._open().restore(self._path(step) / "state", wanted)
        state = jax.tree.unflatten(jax.tree.structure(target), [tensors[name] for name in wanted])
        return state, contents["extra"]


def _first_said(text: str) -> str:
    """The first text, by process, that is not empty: what one process finds, all of them act on."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    mine = np.frombuffer(text.encode()[:_SAID].ljust(_SAID, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(mine))
    said = (row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows)
    return next(filter(None, said), "")
