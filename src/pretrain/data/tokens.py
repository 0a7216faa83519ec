"""`Tokens`: one split of a token store, as one long random-access array of ids."""

from collections.abc import Sequence

import numpy as np


class Tokens:
    """The ids of every document of a split, in order, each followed by the id `end`.

    The ids lie in memory-mapped shards: opening costs nothing, and only what is read is touched.
    `bytes` counts the UTF-8 bytes of the documents' text, so that bits per byte are bits per token
    x len(tokens) / bytes. `digest` identifies the contents, whatever the machine.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        borders: Sequence[np.ndarray],
        *,
        vocab: int,
        end: int,
        text_bytes: int,
        digest: str,
    ) -> None:
        """`shards` hold the ids, `borders` the index behind each document's `end`, by shard."""
        self.vocab = vocab
        self.end = end
        self.bytes = text_bytes
        self.digest = digest
        self.dtype = dtype_of(vocab)
        self._shards = list(shards)
        self._borders = list(borders)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._first_documents = np.cumsum([0, *(len(border) for border in borders)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self._first_documents[-1])

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, without its end."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        shard = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        borders, local = self._borders[shard], index - int(self._first_documents[shard])
        start = int(borders[local - 1]) if local else 0
        return np.array(self._shards[shard][start : int(borders[local]) - 1])

    def window(self, start: int, length: int) -> np.ndarray:
        """`length` ids from index `start` on, whichever shards they lie in."""
        return self.windows(np.array([start]), length)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Ids [N, length] from each of N indices on. Raises IndexError outside the split."""
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(
                f"windows of {length} at {starts.min()} ... {starts.max()} of {len(self)} tokens"
            )
        windows = np.empty((len(starts), length), self.dtype)
        if not windows.size:
            return windows
        first = np.searchsorted(self._starts, starts, side="right") - 1
        last = np.searchsorted(self._starts, starts + length - 1, side="right") - 1
        for shard in np.unique(first[first == last]):
            rows = np.flatnonzero((first == shard) & (last == shard))
            views = np.lib.stride_tricks.sliding_window_view(self._shards[shard], length)
            windows[rows] = views[starts[rows] - self._starts[shard]]
        for row in np.flatnonzero(first != last):
            windows[row] = self._across(int(starts[row]), int(starts[row]) + length)
        return windows

    def _across(self, start: int, stop: int) -> np.ndarray:
        """A window that begins in one shard and ends in another."""
        parts = [
            shard[max(start - begin, 0) : stop - begin]
            for begin, shard in zip(self._starts.tolist(), self._shards, strict=False)
            if begin < stop and start < begin + len(shard)
        ]
        return np.concatenate(parts)


def dtype_of(vocab: int) -> np.dtype:
    """The smallest unsigned integers that hold ids below `vocab`, little-endian."""
    return np.min_scalar_type(vocab - 1).newbyteorder("<")
