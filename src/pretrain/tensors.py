"""Named tensors in a directory, which is what a checkpoint holds; the one place that knows Orbax.

Orbax is imported when it is first needed, in 0.3 s; `warm` hides that behind a compilation.
"""

import functools
import importlib
import itertools
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

_barriers = itertools.count()


def warm() -> None:
    """Import Orbax in a background thread, so that the first save or restore does not wait for it.

    Call it when all other imports are done: imports of packages that need each other, from two
    threads at once, can meet half-made modules.
    """
    threading.Thread(target=importlib.import_module, args=("orbax.checkpoint",)).start()


def named(tree: Any, within: str = "") -> dict[str, Any]:
    """Leaves by name: keys and field names joined by "/", behind `within`.

    Namedtuples and dataclasses become their field names, tuples their indices, empty nodes vanish.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    keys = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    names = [f"{within}/{key}" if within else key for key in keys]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two leaves of the state are called {twice}: rename one of the keys")
    return dict(zip(names, (leaf for _, leaf in pairs), strict=True))


def described(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Name to "float32[512,64]"."""
    return {name: f"{x.dtype}[{','.join(map(str, x.shape))}]" for name, x in tensors.items()}


def differences(held: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    """What tells two descriptions apart, a phrase for each tensor; `held` is on disk."""
    for name, kind in wanted.items():
        if name not in held:
            yield f"{name} is not in it and {kind} in this run"
        elif held[name] != kind:
            yield f"{name} is {held[name]} in it and {kind} in this run"
    for name, kind in held.items():
        if name not in wanted:
            yield f"{name} is {kind} in it and not in this run"


def size(tensors: Mapping[str, Any]) -> int:
    """Bytes of the tensors, each counted once whatever the mesh."""
    return sum(x.size * x.dtype.itemsize for x in tensors.values())


class TensorStore:
    """Writes and reads directories of named tensors; one write at a time, in the background.

    In a run of several processes every process calls every method, in the same order.
    """

    def __init__(self, timeout: int) -> None:
        import orbax.checkpoint as ocp

        _quiet_orbax()
        self._timeout = timeout
        options = ocp.options.AsyncOptions(
            timeout_secs=timeout,
            # True would fail ten minutes later, elsewhere, where the directory cannot be made.
            create_directories_asynchronously=False,
        )
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)

    def save(self, directory: epath.Path, tensors: Mapping[str, jax.Array]) -> None:
        """Write to `directory`, which appears when it is whole; returns when the arrays are copied.

        Raises OSError or ValueError, here or in `finish`, where the disk refuses.
        """
        import orbax.checkpoint as ocp

        self._orbax.save(directory, args=ocp.args.PyTreeSave(dict(tensors)))

    def finish(self) -> None:
        """Wait for the write in the background, on any thread."""
        self._orbax.wait_until_finished()

    def restore(
        self, directory: epath.Path, target: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """The tensors that `target` names, laid out as it says, on any mesh.

        Orbax casts and pads without a word: compare the descriptions first.
        """
        import orbax.checkpoint as ocp

        item = dict(target)
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        return self._orbax.restore(directory, args=arguments)

    def barrier(self) -> None:
        """Wait for all processes, through the coordinator: devices go on working meanwhile."""
        import orbax.checkpoint as ocp

        wait = ocp.multihost.get_barrier_sync_fn()
        wait(key=f"pretrain-tensors-{next(_barriers)}", timeout_ms=1000 * self._timeout)

    def close(self) -> None:
        """Let Orbax's threads go."""
        self._orbax.close()


class _OrbaxErrors(logging.Filter):
    """Drops what Orbax and asyncio log of a failed write: it is raised as well, once."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = "orbax" in record.pathname or "OCDBT" in record.getMessage()
        return record.levelno < logging.ERROR or not ours


@functools.cache
def _quiet_orbax() -> None:
    """A failed write is one sentence to the user; Orbax would print tracebacks for each chunk."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_OrbaxErrors())
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook
