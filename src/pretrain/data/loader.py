"""Batches on devices: each process reads the rows that its own devices hold, ahead of the step.

The state of a loader is the number of the step. Nothing here knows how many hosts there are: a
batch is a global array, and a device's part of it is read by index.
"""

import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import jax
import numpy as np
from jax.sharding import NamedSharding

from pretrain.data.order import InOrder, Rows, Shuffled
from pretrain.data.tokens import Tokens

Batch = dict[str, jax.Array]

AHEAD = 2  # batches made before they are asked for


class Order(Protocol):
    """Rows by index."""

    seq_len: int

    def rows(self, first: int, count: int) -> Rows:
        """Rows first ... first + count - 1."""
        ...


class Loader:
    """The batches of a run."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        seq_len: int,
        seed: int,
        mask_documents: bool,
        batch_rows: Callable[[int], tuple[int, int]],
        sharding: NamedSharding,
    ) -> None:
        """`batch_rows(step)` is a step's first row and number of rows; `sharding` is for [B, T]."""
        self.order = Shuffled(tokens, seq_len=seq_len, seed=seed, mask_documents=mask_documents)
        self._batch_rows, self._sharding = batch_rows, sharding

    def batch(self, step: int) -> Batch:
        """The global batch of a step."""
        first, count = self._batch_rows(step)
        return placed(self.order, first, count, self._sharding)

    def stream(self, start: int, stop: int) -> "Stream":
        """The steps start ... stop - 1 with their batches, made ahead by a thread."""
        return Stream(self.batch, start, stop)


class Evaluation:
    """The batches of a whole split in a fixed order; iterate as often as needed."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        seq_len: int,
        mask_documents: bool,
        batch: int,
        sharding: NamedSharding,
    ) -> None:
        """`batch` is the number of rows; the last batch is filled up with rows of weight 0."""
        self.order = InOrder(tokens, seq_len=seq_len, mask_documents=mask_documents)
        self._rows, self._sharding = batch, sharding

    def __len__(self) -> int:
        return -(-self.order.windows // self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield placed(self.order, index * self._rows, self._rows, self._sharding)


def placed(order: Order, first: int, count: int, sharding: NamedSharding) -> Batch:
    """Rows first ... first + count - 1 as global arrays; a process reads those of its devices."""
    shape = (count, order.seq_len)

    def span(index: tuple[slice, ...]) -> tuple[int, int]:
        start, stop, _ = index[0].indices(count)
        return first + start, stop - start

    held = sharding.addressable_devices_indices_map(shape).values()
    read = {key: order.rows(*key) for key in {span(index) for index in held if index is not None}}

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        return read[span(index)][name][:, index[1]]

    return {
        name: jax.make_array_from_callback(shape, sharding, functools.partial(part, name))
        for name in next(iter(read.values()))
    }


class Stream:
    """Steps and their batches, in order, made ahead of the consumer by a thread.

    An exception in the thread is raised where the batch is asked for. Close it, or use it as a
    context manager; one that is dropped, or still open at exit, stops its thread by itself.
    """

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int) -> None:
        self._queue: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=AHEAD)
        self._waited = 0.0
        self._over = False
        closed = threading.Event()
        # The thread must not hold the stream, or one that is dropped would never be collected.
        thread = threading.Thread(
            target=_make_ahead, args=(make, range(start, stop), self._queue, closed), daemon=True
        )
        self._finish = weakref.finalize(self, _shut, thread, self._queue, closed)
        thread.start()

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._over:
            raise StopIteration
        began = time.perf_counter()
        made = self._queue.get()
        self._waited += time.perf_counter() - began
        if isinstance(made, BaseException):
            self.close()
            raise made
        return made

    def waited(self) -> float:
        """Seconds that the consumer has waited for batches since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stop the thread; there are no further batches."""
        self._over = True
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_ahead(
    make: Callable[[int], Batch], steps: range, made: queue.Queue, closed: threading.Event
) -> None:
    """Body of the thread. Whatever ends it, no more steps included, is put as an exception."""
    try:
        for step in steps:
            if closed.is_set():
                return
            made.put((step, make(step)))
        made.put(StopIteration())
    except BaseException as error:
        made.put(error)


def _shut(thread: threading.Thread, made: queue.Queue, closed: threading.Event) -> None:
    """Stop the thread, which may be waiting for room in the queue: it puts once more at most."""
    closed.set()
    with contextlib.suppress(queue.Empty):
        while True:
            made.get_nowait()
    # The garbage collector may run this in the thread itself.
    if thread is not threading.current_thread():
        thread.join()
