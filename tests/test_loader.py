"""The order of the data is a pure function of the step, and batches hold what it says."""

import gc
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pretrain.config import Mistake
from pretrain.data.loader import Evaluation, Loader, Stream, placed
from pretrain.data.order import InOrder, Shuffled, permuted
from pretrain.data.tokens import Tokens

END = 0
MESHES = [(1, 1), (8, 1), (4, 2), (1, 8), (2, 1)]


def tokens_of(documents: list[list[int]]) -> Tokens:
    """A split in two shards, cut between documents."""
    half = len(documents) // 2
    parts = [part for part in (documents[:half], documents[half:]) if part]
    return Tokens(
        [np.array([id for ids in part for id in (*ids, END)], np.uint16) for part in parts],
        [np.cumsum([len(ids) + 1 for ids in part], dtype=np.uint64) for part in parts],
        vocab=1000,
        end=END,
        text_bytes=sum(map(len, documents)),
        digest="",
    )


def example(count: int = 60) -> Tokens:
    """Documents of 1 to 23 tokens; every id says which document it is from."""
    return tokens_of([[1 + index] * (1 + index * 7 % 23) for index in range(count)])


def sharding(rows: int, columns: int, spec: PartitionSpec = PartitionSpec("data", "seq")) -> Any:  # noqa: B008
    devices = jax.devices()[: rows * columns]
    mesh = jax.make_mesh(
        (rows, columns), ("data", "seq"), (AxisType.Explicit,) * 2, devices=devices
    )
    return NamedSharding(mesh, spec)


def loader(tokens: Tokens, layout: NamedSharding, *, mask: bool = True, seed: int = 3) -> Loader:
    return Loader(
        tokens,
        seq_len=16,
        seed=seed,
        mask_documents=mask,
        batch_rows=lambda step: (step * 8, 8),
        sharding=layout,
    )


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_make_ahead" in thread.name]


# --- the permutation


@settings(deadline=None)
@given(size=st.integers(1, 2000), seed=st.integers(0, 2**70), epoch=st.integers(0, 2**40))
def test_the_permutation_is_one(size: int, seed: int, epoch: int) -> None:
    image = permuted(np.arange(size), size, seed, epoch)
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@settings(deadline=None)
@given(st.data(), st.integers(1, 2**62))
def test_the_permutation_reads_any_index_of_any_size(data: Any, size: int) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    image = permuted(index, size, 0, 0)
    assert image.min() >= 0 and image.max() < size
    assert [permuted(index[i : i + 1], size, 0, 0)[0] for i in range(len(index))] == image.tolist()


def test_the_permutation_differs_by_seed_and_by_epoch() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    images = [permuted(np.arange(5000), 5000, *key) for key in keys]
    for one, other in itertools.combinations(images, 2):
        # Two random permutations agree in one place on average.
        assert np.count_nonzero(one == other) < 10


@pytest.mark.parametrize("size", [43_008, 65_536])
def test_the_permutation_is_as_good_as_a_random_one(size: int) -> None:
    image = permuted(np.arange(size), size, 7, 0)
    for lag in (1, 2, 8, 64, 256, 1024):
        assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) * size**0.5 < 5
    pairs = np.histogram2d(image[:-1], image[1:], bins=16)[0]
    expected = (size - 1) / 256
    # 255 degrees of freedom: standard deviation 22.6.
    assert abs(((pairs - expected) ** 2 / expected).sum() - 255) < 5 * 22.6


# --- rows


def test_every_window_comes_once_an_epoch_in_another_order() -> None:
    tokens = example()
    order = Shuffled(tokens, seq_len=16, seed=1, mask_documents=False)
    assert order.windows * 16 + order.left_over == len(tokens) - 1
    whole = tokens.window(0, order.windows * 16 + 1).astype(np.int32)
    epochs = [order.rows(epoch * order.windows, order.windows) for epoch in range(3)]
    for rows in epochs:
        pairs = np.concatenate([rows["tokens_BT"], rows["targets_BT"]], axis=1)
        expected = np.concatenate([whole[:-1].reshape(-1, 16), whole[1:].reshape(-1, 16)], axis=1)
        np.testing.assert_array_equal(pairs[np.lexsort(pairs.T)], expected[np.lexsort(expected.T)])
    for one, other in itertools.combinations(epochs, 2):
        assert (one["tokens_BT"] != other["tokens_BT"]).any()


@settings(deadline=None)
@given(first=st.integers(0, 500), count=st.integers(1, 200))
def test_rows_do_not_depend_on_how_many_are_read_at_once(first: int, count: int) -> None:
    order = Shuffled(example(), seq_len=16, seed=1, mask_documents=True)
    rows = order.rows(first, count)
    ones = [order.rows(first + row, 1) for row in range(0, count, 17)]
    for name in rows:
        parts = np.concatenate([one[name] for one in ones])
        np.testing.assert_array_equal(rows[name][::17], parts)


def naive(window: list[int]) -> dict[str, list[float]]:
    """One row, document by document."""
    row: dict[str, list[float]] = {"segments_BT": [], "positions_BT": [], "weights_BT": []}
    documents: list[list[int]] = [[]]
    for id in window[:-1]:
        documents[-1].append(id)
        if id == END:
            documents.append([])
    for segment, document in enumerate(documents, 1):
        row["segments_BT"] += [segment] * len(document)
        row["positions_BT"] += range(len(document))
        row["weights_BT"] += [0.0 if id == END else 1.0 for id in document]
    return row


def test_masked_rows_are_their_documents_one_by_one() -> None:
    tokens = tokens_of([[], [5], [], *[[1 + i] * (i * 7 % 23) for i in range(60)]])
    order = Shuffled(tokens, seq_len=16, seed=1, mask_documents=True)
    rows = order.rows(0, order.windows)
    windows = np.concatenate([rows["tokens_BT"], rows["targets_BT"][:, -1:]], axis=1)
    expected = [naive(window) for window in windows.tolist()]
    for name in ("segments_BT", "positions_BT", "weights_BT"):
        np.testing.assert_array_equal(rows[name], [row[name] for row in expected], err_msg=name)
    dtypes = {name: values.dtype.name for name, values in rows.items()}
    assert dtypes.pop("weights_BT") == "float32" and set(dtypes.values()) == {"int32"}


def test_unmasked_rows_count_every_target_and_have_no_segments() -> None:
    rows = Shuffled(example(), seq_len=16, seed=1, mask_documents=False).rows(0, 9)
    assert set(rows) == {"tokens_BT", "targets_BT", "weights_BT"}
    assert rows["weights_BT"].all()


def test_too_few_tokens_and_a_negative_seed_are_refused() -> None:
    tokens = tokens_of([[1, 2, 3]])
    orders = [Shuffled(tokens, seq_len=n, seed=0, mask_documents=False) for n in (1, 2, 3)]
    assert [order.windows for order in orders] == [3, 1, 1]
    with pytest.raises(Mistake, match=r"has 4 tokens and a window needs seq_len \+ 1 = 5"):
        Shuffled(tokens, seq_len=4, seed=0, mask_documents=False)
    with pytest.raises(Mistake, match="seed is -1"):
        Shuffled(tokens, seq_len=2, seed=-1, mask_documents=False)


# --- evaluation


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    seq_len=st.integers(1, 12),
    batch=st.integers(1, 5),
)
def test_an_evaluation_scores_every_token_once(
    lengths: list[int], seq_len: int, batch: int
) -> None:
    tokens = tokens_of([[1 + index] * length for index, length in enumerate(lengths)])
    order = InOrder(tokens, seq_len=seq_len, mask_documents=False)
    batches = [order.rows(i, batch) for i in range(0, order.windows + 2 * batch, batch)]
    joined = {name: np.concatenate([b[name].ravel() for b in batches]) for name in batches[0]}
    scored = joined["weights_BT"] == 1
    whole = tokens.window(0, len(tokens))
    np.testing.assert_array_equal(joined["targets_BT"][scored], whole)
    np.testing.assert_array_equal(joined["tokens_BT"][scored], [END, *whole[:-1]])
    assert scored[: len(tokens)].all()


def test_a_masked_evaluation_scores_all_but_first_tokens() -> None:
    tokens = example()
    layout = sharding(4, 2)
    held_out = Evaluation(tokens, seq_len=16, mask_documents=True, batch=8, sharding=layout)
    batches = [jax.device_get(batch) for batch in held_out]
    assert len(batches) == len(held_out) == -(-len(tokens) // (16 * 8))
    assert sum(batch["weights_BT"].sum() for batch in batches) == len(tokens) - tokens.documents
    for batch, again in zip(batches, held_out, strict=True):
        assert_equal(batch, again)


def test_an_empty_split_has_no_batches() -> None:
    empty = Tokens([], [], vocab=256, end=0, text_bytes=0, digest="")
    layout = sharding(1, 1)
    held_out = Evaluation(empty, seq_len=16, mask_documents=True, batch=8, sharding=layout)
    assert list(held_out) == []


# --- batches on devices


@pytest.mark.parametrize("mask", [True, False])
def test_batches_are_equal_on_every_mesh(mask: bool) -> None:
    expected = Shuffled(example(), seq_len=16, seed=3, mask_documents=mask).rows(16, 8)
    for shape in MESHES:
        layout = sharding(*shape)
        batch = loader(example(), layout, mask=mask).batch(2)
        assert all(array.sharding == layout for array in batch.values())
        assert_equal(jax.device_get(batch), expected)


def test_a_device_reads_its_own_rows_once() -> None:
    order = Shuffled(example(), seq_len=16, seed=3, mask_documents=True)
    read: list[tuple[int, int]] = []
    rows = order.rows
    order.rows = lambda *key: (read.append(key), rows(*key))[1]  # type: ignore[method-assign]
    placed(order, 32, 8, sharding(4, 2))
    assert sorted(read) == [(32, 2), (34, 2), (36, 2), (38, 2)]
    read.clear()
    placed(order, 32, 8, sharding(4, 2, PartitionSpec(None, "seq")))
    assert read == [(32, 8)]


def test_batch_sizes_may_change_from_step_to_step() -> None:
    made = Loader(
        example(),
        seq_len=16,
        seed=3,
        mask_documents=False,
        batch_rows=lambda step: (0, 8) if step == 0 else (8, 16),
        sharding=sharding(8, 1),
    )
    batches = [made.batch(step)["tokens_BT"] for step in range(2)]
    np.testing.assert_array_equal(np.concatenate(batches), made.order.rows(0, 24)["tokens_BT"])


# --- the stream


def test_a_stream_gives_the_batches_of_its_steps_wherever_it_starts() -> None:
    made = loader(example(), sharding(2, 2))
    with made.stream(0, 12) as stream:
        whole = list(stream)
    with made.stream(5, 12) as stream:
        resumed = list(stream)
    assert [step for step, _ in whole] == list(range(12))
    assert [step for step, _ in resumed] == list(range(5, 12))
    for (step, one), (_, other) in zip(whole[5:], resumed, strict=True):
        assert_equal(jax.device_get(one), jax.device_get(other))
        assert_equal(jax.device_get(one), made.order.rows(step * 8, 8))
    assert not threads()


def stream_of(make: Callable[[int], Any], stop: int = 10**9) -> Stream:
    return Stream(make, 0, stop)


def test_batches_are_made_ahead_but_not_far() -> None:
    made: list[int] = []
    with stream_of(made.append) as stream:
        next(stream)
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        # One taken, two in the queue, one in the thread's hand.
        assert made == [0, 1, 2, 3]


def test_an_exception_reaches_the_consumer_behind_the_batches_before_it() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise Mistake("The disk is gone.")
        return step

    got = []
    with stream_of(make) as stream, pytest.raises(Mistake, match=r"The disk is gone\."):
        for step, _ in stream:
            got.append(step)
    assert got == [0, 1, 2]
    assert next(stream, None) is None
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_stream_that_is_left_early_stops_its_thread(error: type[BaseException]) -> None:
    with pytest.raises(error), stream_of(lambda step: step) as stream:
        next(stream)
        raise error
    assert not threads()
    assert list(stream) == []


def test_a_stream_that_is_dropped_stops_its_thread() -> None:
    stream = stream_of(lambda step: step)
    next(stream)
    del stream
    gc.collect()
    assert not threads()


def test_the_wait_is_what_the_consumer_waited_since_last_asked() -> None:
    gate = threading.Semaphore(1)

    def make(step: int) -> int:
        gate.acquire()
        return step

    with stream_of(make, 3) as stream:
        next(stream)
        stream.waited()
        threading.Timer(0.05, gate.release).start()
        next(stream)
        assert 0.04 < stream.waited() < 5
        assert stream.waited() == 0
        gate.release(2)
