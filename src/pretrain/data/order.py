"""The order of the data, as a pure function: row r of a run is f(seed, r), whatever reads it.

The number of hosts, devices, threads and batches ahead changes nothing, and the position of a run
in its data is a number. Rows are a dict of arrays [B, T]:

    tokens_BT     int32    the model's input
    targets_BT    int32    the id that follows each input
    weights_BT    float32  1 where the target counts in the loss, else 0
    segments_BT   int32    the document within the row, from 1; only where documents are masked
    positions_BT  int32    position in the document's part of the row; only where they are masked
"""

from collections.abc import Callable

import numpy as np

from pretrain.config import Mistake
from pretrain.data.tokens import Tokens

Rows = dict[str, np.ndarray]

_ROUNDS = 8


def permuted(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Images of `index` under a random permutation of range(size), one for each seed and epoch.

    A Feistel network of 8 rounds on an even number of bits, walked until it lands below `size`:
    exact, in O(1) memory and time an index, for any size up to 2^62.
    """
    # Not grain's MapDataset.shuffle: neighbours in its order of 43,008 windows correlate by 25
    # standard deviations (4 rounds of a weak cipher), a row takes 20 us of Python, and there may be
    # no more than 2^32.
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(_ROUNDS, np.uint64)

    def encrypt(value: np.ndarray) -> np.ndarray:
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << half) | right

    image = encrypt(index.astype(np.uint64))
    while len(outside := np.flatnonzero(image >= size)):
        image[outside] = encrypt(image[outside])
    return image.astype(np.int64)


def _mixed(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def check_length(tokens: Tokens, seq_len: int) -> None:
    """Raises Mistake where the tokens are fewer than a window of `Shuffled`."""
    if len(tokens) < seq_len + 1:
        raise Mistake(
            f"The training split has {len(tokens):,} tokens and a window needs seq_len + 1 = "
            f"{seq_len + 1:,}: use a smaller seq_len or more text."
        )


class Shuffled:
    """The rows of a run: windows of `seq_len` tokens, shuffled anew each epoch, without end.

    Window i is tokens[i * T : i * T + T + 1], T inputs and their targets, so that every token but
    the first is a target once an epoch. What is left behind the last whole window is not read.
    """

    def __init__(self, tokens: Tokens, *, seq_len: int, seed: int, mask_documents: bool) -> None:
        """Raises Mistake where the tokens are fewer than a window, or the seed is negative."""
        check_length(tokens, seq_len)
        if seed < 0:
            raise Mistake(f"seed is {seed}: it is 0 or more.")
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        self.windows = (len(tokens) - 1) // seq_len  # in an epoch
        self.left_over = (len(tokens) - 1) % seq_len  # targets behind the last whole window
        self._arranged = arrangement(mask_documents)

    def describe(self) -> str:
        """What an epoch is, in a sentence."""
        return (
            f"An epoch is {self.windows:,} windows of {self.seq_len:,} tokens; "
            f"{self.left_over:,} tokens behind the last window are not read."
        )

    def rows(self, first: int, count: int) -> Rows:
        """Rows first ... first + count - 1 of the run; row r is in epoch r // windows."""
        epochs, within = np.divmod(np.arange(first, first + count), self.windows)
        window = np.empty_like(within)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            window[rows] = permuted(within[rows], self.windows, self.seed, int(epoch))
        windows_BS = self.tokens.windows(window * self.seq_len, self.seq_len + 1)
        return self._arranged(windows_BS.astype(np.int32), self.tokens.end)


class InOrder:
    """The rows of an evaluation: every token of a split is a target once, in order.

    The first token is predicted from an `end`, like the first of any document; behind the last
    token rows are padded with `end` at weight 0.
    """

    def __init__(self, tokens: Tokens, *, seq_len: int, mask_documents: bool) -> None:
        self.tokens, self.seq_len = tokens, seq_len
        self.windows = -(-len(tokens) // seq_len)
        self._arranged = arrangement(mask_documents)

    def rows(self, first: int, count: int) -> Rows:
        """Rows first ... first + count - 1; those behind the last window are padding alone."""
        start, stop = first * self.seq_len, (first + count) * self.seq_len
        end, size = self.tokens.end, len(self.tokens)
        # ids[i] is token start - 1 + i: an input stands one before its target.
        ids = np.full(stop - start + 1, end, np.int32)
        begin = min(max(start - 1, 0), size)
        read = self.tokens.window(begin, max(min(stop, size) - begin, 0))
        ids[begin - start + 1 :][: len(read)] = read
        windows_BS = np.lib.stride_tricks.sliding_window_view(ids, self.seq_len + 1)[
            :: self.seq_len
        ]
        arranged = self._arranged(windows_BS, end)
        target = np.arange(start, stop).reshape(count, self.seq_len)
        arranged["weights_BT"] *= target < size
        return arranged


def arrangement(mask_documents: bool) -> Callable[[np.ndarray, int], Rows]:
    """How windows become rows: documents run into each other, or each is alone."""
    return apart if mask_documents else joined


def joined(windows_BS: np.ndarray, end: int) -> Rows:
    """Windows [B, T + 1] as rows in which a document is context for the next one."""
    targets_BT = windows_BS[:, 1:]
    return {
        "tokens_BT": windows_BS[:, :-1],
        "targets_BT": targets_BT,
        "weights_BT": np.ones(targets_BT.shape, np.float32),
    }


def apart(windows_BS: np.ndarray, end: int) -> Rows:
    """Windows [B, T + 1] as rows in which every document is alone.

    An `end` is the last token of its document. Its own target, the first token of another document,
    has weight 0: nothing that the model may see leads to it.
    """
    rows = joined(windows_BS, end)
    tokens_BT = rows["tokens_BT"]
    ends_BT = tokens_BT == end
    begins_BT = np.ones_like(ends_BT)
    begins_BT[:, 1:] = ends_BT[:, :-1]
    index_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    begun_BT = np.maximum.accumulate(np.where(begins_BT, index_BT, 0), axis=1)
    return rows | {
        "weights_BT": np.where(ends_BT, np.float32(0), np.float32(1)),
        "segments_BT": np.cumsum(begins_BT, axis=1, dtype=np.int32),
        "positions_BT": index_BT - begun_BT,
    }
