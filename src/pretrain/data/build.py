"""`Build`: a source tokenised once, into a directory of shards with a manifest.

The input files are taken in groups, one output shard a group and split. A group's record is written
last, so a killed build goes on at the first group without one. When every group has its record the
manifest is written and the directory gets its name. Memory holds one batch of documents.

    KEY/manifest.json       sizes, digests, and what was left out
    KEY/00000.train.ids     ids, the smallest unsigned integers that hold the vocabulary
    KEY/00000.train.ends    uint64: the index behind each document's end, within the shard
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pretrain.config import Mistake
from pretrain.data.source import Shard, Source
from pretrain.data.tokenizer import Codec
from pretrain.data.tokens import dtype_of

FORMAT = 1
SPLITS = ("train", "held_out")
GROUP_BYTES = 1 << 26  # of input, at least, to an output shard
MOST_GROUPS = 256  # every shard of an open store is an open file
BATCH_CHARACTERS = 1 << 22  # of text handed to the tokenizer at a time
BATCH_DOCUMENTS = 1 << 13
REPORT_SECONDS = 10.0


class Document(NamedTuple):
    """A text on its way through the tokenizer."""

    text: str
    file: str  # the input file it is from


class Build:
    """The making of the store of one source, tokenizer and split."""

    def __init__(
        self,
        root: Path,
        source: Source,
        codec: Codec,
        held_out: float,
        report: Callable[[str], None],
    ) -> None:
        self.root, self.source, self.codec, self.report = root, source, codec, report
        self._held_out = held_out
        self.directory = root / self._key()  # of the finished store
        self._partial = self.directory.with_suffix(".partial")
        self._input = self._input_done = self._written = self._tokens = 0
        self._began = self._reported = time.monotonic()

    def _key(self) -> str:
        """Another one when the source's files or options, the tokenizer or the split change."""
        identity = (FORMAT, self.source.fingerprint(), self.codec.fingerprint, self._held_out)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Alone among the processes that build this store. A killed one's turn is over."""
        import fcntl

        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            file = self.directory.with_suffix(".lock").open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"Waiting for another process that builds {self.directory}.")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self) -> None:
        """Write the groups that are not there yet, then the manifest and the directory's name.

        Raises Mistake for input that cannot be tokenised, files that change meanwhile, and a disk
        that is full or may not be written.
        """
        shards = self.source.shards()
        self._input = sum(shard.size for shard in shards)
        size = f"{self._input / 1e6:,.1f} MB in {len(shards):,} files"
        self.report(f"Tokenising {size} into {self.directory}.")
        with self._writing():
            self._partial.mkdir(exist_ok=True)
        records = []
        for index, group in enumerate(_groups(shards)):
            path = self._partial / f"{index:05d}.json"
            if not path.exists():
                record = self._group(f"{index:05d}", group)
                with self._writing():
                    _write_json(path, record)
            records.append(json.loads(path.read_text()))
            self._input_done += sum(shard.size for shard in group)
            self._written += sum(part["stored"] for part in records[-1]["splits"].values())
        if self._key() != self.directory.name:
            shutil.rmtree(self._partial)
            raise Mistake("Files of data.source changed while they were tokenised: start again.")
        with self._writing():
            _write_json(self._partial / "manifest.json", self._manifest(records))
            self._partial.rename(self.directory)

    def _group(self, name: str, group: list[Shard]) -> dict[str, Any]:
        """Tokenise some input files into one shard a split; returns the group's record."""
        counts: Counter[str] = Counter()
        dtype = dtype_of(self.codec.vocab)
        with contextlib.ExitStack() as stack:
            with self._writing():
                outputs = {
                    split: stack.enter_context(_Output(self._partial, f"{name}.{split}", dtype))
                    for split in SPLITS
                }
            for batch in self._batches(group, counts):
                encoded = self._encoded(batch, counts)
                data = [document.text.encode() for document in batch]
                splits = [self._split(one) for one in data]
                for split, output in outputs.items():
                    chosen = [index for index, its in enumerate(splits) if its == split]
                    size = sum(len(data[index]) for index in chosen)
                    with self._writing():
                        output.append([encoded[index] for index in chosen], size)
                self._progress(sum(map(len, encoded)))
            with self._writing():
                parts = {split: output.finish() for split, output in outputs.items()}
        return {"splits": parts, "counts": counts}

    def _batches(self, group: list[Shard], counts: Counter[str]) -> Iterator[list[Document]]:
        """The documents, some at a time; counts those that are left out."""
        batch: list[Document] = []
        characters = 0
        for shard in group:
            for text in self.source.read(shard):
                if not text:
                    counts["undecodable" if text is None else "empty"] += 1
                    continue
                batch.append(Document(text, shard.name))
                characters += len(text)
                if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
                    yield batch
                    batch, characters = [], 0
        if batch:
            yield batch

    def _encoded(self, batch: list[Document], counts: Counter[str]) -> list[np.ndarray]:
        """Ids of each text with `end` behind them. Raises Mistake for ids that no text may have."""
        vocab, end = self.codec.vocab, self.codec.end
        encoded = self.codec.encode_batch([document.text for document in batch])
        ids = np.concatenate(encoded)
        if np.any((ids < 0) | (ids >= vocab) | (ids == end)):
            for document, one in zip(batch, encoded, strict=True):
                for wrong in one[(one < 0) | (one >= vocab) | (one == end)][:1]:
                    raise Mistake(
                        f"The tokenizer turns text of {document.file} into id {wrong}; ids are "
                        f"below {vocab}, and {end} ends a document: use another tokenizer or end."
                    )
        if self.codec.unknown is not None:
            counts["unknown"] += int(np.count_nonzero(ids == self.codec.unknown))
        return [np.append(one, one.dtype.type(end)) for one in encoded]

    def _split(self, data: bytes) -> str:
        """Which split a document is in, by its text alone.

        Its place and its neighbours do not matter, and all copies of it are on one side.
        """
        hashed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
        return "held_out" if hashed < self._held_out * 2**64 else "train"

    def _progress(self, tokens: int) -> None:
        self._tokens += tokens
        now = time.monotonic()
        if now - self._reported > REPORT_SECONDS:
            self._reported = now
            rate = self._tokens / (now - self._began) / 1e6
            share = self._input_done / max(self._input, 1)
            self.report(f"Tokenised {share:.0%} of the input, {rate:.2f} M tokens/s.")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong on the disk, as a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise Mistake(
                    f"The token store {self.root} cannot be written ({error.strerror}): "
                    "set data.cache to another directory."
                ) from error
            needed = self._input - self._input_done
            if self._input_done:
                needed = needed * self._written // self._input_done
            free = shutil.disk_usage(self.root).free
            raise Mistake(
                f"The disk of the token store {self.root} is full: it needs about {needed:,} "
                f"bytes and {free:,} are free; make room, or set data.cache to another disk "
                "(what is tokenised is kept)."
            ) from error

    def _manifest(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for record in records:
            counts.update(record["counts"])
        return {
            "format": FORMAT,
            "source": repr(self.source),
            "vocab": self.codec.vocab,
            "end": self.codec.end,
            "counts": counts,
            "splits": {split: [record["splits"][split] for record in records] for split in SPLITS},
        }


class _Output:
    """The shard of one split, while it is written."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.ids = (folder / f"{name}.ids").open("wb")
        self.ends = (folder / f"{name}.ends").open("wb")
        self.tokens = self.documents = self.bytes = self.stored = 0
        self.digest = hashlib.sha256()

    def append(self, documents: list[np.ndarray], size: int) -> None:
        """Write the ids of documents whose text has `size` bytes."""
        if not documents:
            return
        ends = self.tokens + np.cumsum([len(ids) for ids in documents], dtype="<u8")
        data = np.concatenate(documents).astype(self.dtype).tobytes()
        self.stored += self.ids.write(data) + self.ends.write(ends.tobytes())
        self.digest.update(data)
        self.tokens = int(ends[-1])
        self.documents += len(documents)
        self.bytes += size

    def finish(self) -> dict[str, Any]:
        """Put everything on the disk; returns the shard's entry in the manifest."""
        for file in (self.ids, self.ends):
            file.flush()
            os.fsync(file.fileno())
        sizes = ("tokens", "documents", "bytes", "stored")
        return {
            "name": self.name,
            "sha256": self.digest.hexdigest(),
            **{size: getattr(self, size) for size in sizes},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # On a full disk what is still buffered cannot be written, and need not be.
        for file in (self.ids, self.ends):
            with contextlib.suppress(OSError):
                file.close()


def _groups(shards: list[Shard]) -> Iterator[list[Shard]]:
    """Neighbouring input files of at least GROUP_BYTES together, about MOST_GROUPS at most."""
    least = max(GROUP_BYTES, sum(shard.size for shard in shards) // MOST_GROUPS)
    group: list[Shard] = []
    size = 0
    for shard in shards:
        group.append(shard)
        size += shard.size
        if size >= least:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_json(path: Path, value: Any) -> None:
    """Write a file that is there entirely or not at all."""
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
