"""Text files named by patterns: plain text, JSON lines or Parquet, local or remote."""

import functools
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pretrain.config import Mistake, Node
from pretrain.data.source import Shard, Source

BLOCK_BYTES = 1 << 20  # read at a time
WHOLE_FILE_BYTES = 1 << 28  # the longest document that is taken from a plain text file

_JSON_LINES = (".jsonl", ".ndjson", ".json")
# What file systems call a property that changes with the file.
_STAMPS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


class PlainText(Node):
    """How a plain text file is cut into documents."""

    def cut(self, blocks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
        """Byte offset and bytes of each document, from the blocks of one file."""
        raise NotImplementedError


class WholeFile(PlainText):
    """A file is a document."""

    def cut(self, blocks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
        """The whole file. Raises Mistake where it is too long to be held in memory."""
        whole = bytearray()
        for block in blocks:
            whole += block
            if len(whole) > WHOLE_FILE_BYTES:
                raise Mistake(
                    f"{name} is one document of more than {WHOLE_FILE_BYTES >> 20} MiB: set "
                    "data.source.plain to Separated(by=...) with the text between its documents, "
                    "or convert it to JSON lines."
                )
        yield 0, bytes(whole)


class Separated(PlainText):
    """Documents stand one after another, with a text between them that belongs to neither."""

    by: str  # the text between two documents: "<|endoftext|>", or a newline for one document a line

    def cut(self, blocks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
        """The texts between separators, the last one only where it is not empty."""
        if not self.by:
            raise Mistake(
                "data.source.plain.by is empty: give the text that separates two documents."
            )
        return _split(blocks, self.by.encode())


class Files(Source):
    """Every file that a pattern matches, sorted by name. The ending says how a file is read.

    `.jsonl`, `.ndjson` and `.json` hold one JSON object a line, `.parquet` a table; any other file
    is plain text. A further `.gz` or `.zst` is decompressed first.
    """

    glob: tuple[str, ...]  # paths, patterns or URLs: ("corpus/**/*.jsonl.zst", "more/*.txt")
    field: str = "text"  # the text's key in a JSON object, or its column in a Parquet file
    plain: PlainText = WholeFile()  # cuts plain text into documents; or Separated(by="...")

    def shards(self) -> list[Shard]:
        """The files, sorted by name. Raises Mistake where a pattern has none, or all are empty."""
        if isinstance(self.glob, str) or not self.glob:
            raise Mistake(
                f"data.source.glob is {self.glob!r}: "
                'write a tuple of patterns, as in ("corpus/*.txt",).'
            )
        found = sorted({shard for pattern in self.glob for shard in _matches(pattern)})
        if not any(shard.size for shard in found):
            raise Mistake(
                f"data.source.glob {self.glob} matches {len(found)} files, and they are all empty."
            )
        return found

    def read(self, shard: Shard) -> Iterator[str | None]:
        """Stream the documents of one file."""
        import fsspec

        name = shard.name.lower()
        try:
            with fsspec.open(shard.name, "rb") as file:
                if name.endswith(".parquet"):
                    yield from self._parquet(file, shard.name)
                elif name.removesuffix(".gz").removesuffix(".zst").endswith(_JSON_LINES):
                    yield from self._json_lines(_blocks(file, shard.name), shard.name)
                else:
                    for start, data in self.plain.cut(_blocks(file, shard.name), shard.name):
                        yield self.decoded(data, shard.name, start)
        except (OSError, EOFError, zlib.error) as error:
            raise Mistake(f"{shard.name} cannot be read: {error}.") from error

    def _json_lines(self, blocks: Iterator[bytes], name: str) -> Iterator[str | None]:
        for number, (start, data) in enumerate(_split(blocks, b"\n"), 1):
            where = f"{name} line {number}"
            if not data.strip():
                continue
            line = self.decoded(data, where, start)
            if line is None:
                yield None
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Mistake(
                    f"{where} is not JSON ({error}): one object a line is expected."
                ) from error
            if not isinstance(row, dict):
                raise Mistake(
                    f"{where} holds a JSON {type(row).__name__}: one object a line is expected."
                )
            if self.field not in row:
                raise Mistake(
                    f"{where} has no field {self.field!r}: "
                    f"set data.source.field to one of {list(row)}."
                )
            yield self._text(row[self.field], where)

    def _parquet(self, file: IO[bytes], name: str) -> Iterator[str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
            columns = table.schema_arrow.names
            if self.field not in columns:
                raise Mistake(
                    f"{name} has no column {self.field!r}: "
                    f"set data.source.field to one of {columns}."
                )
            number = 0
            for rows in table.iter_batches(batch_size=256, columns=[self.field]):
                # As bytes: pyarrow trusts strings to be UTF-8, and names no row where they are not.
                for value in _bytes_of(rows.column(0)).to_pylist():
                    number += 1
                    where = f"{name} row {number}"
                    binary = isinstance(value, bytes)
                    yield self.decoded(value, where) if binary else self._text(value, where)
        except pa.ArrowException as error:
            raise Mistake(f"{name} cannot be read as Parquet: {str(error).rstrip('.')}.") from error

    def _text(self, value: Any, where: str) -> str | None:
        if not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            raise Mistake(f"{where} has a field {self.field!r} of type {kind}: text is expected.")
        return self.checked(value, where)


def _bytes_of(column: Any) -> Any:
    """A text column viewed as binary, without a copy or a check; any other column as it is."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _bytes_of(column.dictionary_decode())
    if pa.types.is_string(kind):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(kind) else column


def _matches(pattern: str) -> list[Shard]:
    """The files of one pattern."""
    import fsspec

    try:
        system, path = fsspec.url_to_fs(pattern)
        found: dict[str, dict[str, Any]] = system.glob(path, detail=True)
        files = {path: info for path, info in found.items() if info["type"] != "directory"}
        if "file" in system.protocol:
            shards = [Shard.at(Path(path)) for path in files]
        else:
            shards = [_remote(system.unstrip_protocol(path), info) for path, info in files.items()]
    except (OSError, ValueError, ImportError) as error:
        raise Mistake(f"data.source.glob {pattern!r} cannot be listed: {error}.") from error
    if found and not files:
        raise Mistake(
            f"data.source.glob {pattern!r} matches folders only: "
            f'name the files, as in "{pattern.rstrip("/")}/**/*.txt".'
        )
    if not files:
        raise Mistake(f"data.source.glob {pattern!r} matches no file.")
    return shards


def _remote(url: str, info: dict[str, Any]) -> Shard:
    stamp = {key: str(info[key]) for key in _STAMPS if key in info}
    return Shard(url, info["size"] or 0, str(stamp))


def _blocks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The bytes of a file, decompressed as its ending says, a block at a time."""
    if name.lower().endswith(".zst"):
        return _unzstd(file)
    plain = gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file
    return iter(functools.partial(plain.read, BLOCK_BYTES), b"")


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Every frame of a Zstandard file. Raises EOFError where the last one is cut short."""
    import zstandard

    # Not `stream_reader`: it ends without a word where the file does, in the middle of a frame.
    frame = zstandard.ZstdDecompressor().decompressobj()
    began = False
    try:
        while data := file.read(BLOCK_BYTES):
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data, began = frame.unused_data, True
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if began and not frame.eof:
        raise EOFError("Compressed file ended before the end of its last frame")


def _split(blocks: Iterator[bytes], by: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each piece between separators; the last one unless it is empty."""
    start, rest = 0, b""
    for block in blocks:
        *pieces, rest = (rest + block).split(by)
        for piece in pieces:
            yield start, piece
            start += len(piece) + len(by)
    if rest:
        yield start, rest
