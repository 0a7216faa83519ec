"""Sources of text: what documents there are, in which files, and when they have changed.

A source lists its files (`shards`) and reads one at a time as a stream of documents, so that memory
stays flat and a killed tokenisation starts again at a file. `StandardLibrary`, the default, is text
that every machine has; `pretrain.data.files.Files` reads a corpus.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from pretrain.config import Mistake, Node


class Shard(NamedTuple):
    """One input file."""

    name: str  # path or URL
    size: int  # bytes, as stored
    stamp: str  # differs when the file has changed: modification time or entity tag

    @classmethod
    def at(cls, path: Path) -> Self:
        """A local file, behind its links."""
        stat = path.stat()
        return cls(str(path), stat.st_size, str(stat.st_mtime_ns))


class Undecodable(Node):
    """What happens to a document that is not UTF-8 text."""

    def leave_out(self, complaint: str) -> None:
        """Return to leave the document out, or raise."""
        raise NotImplementedError


class Stop(Undecodable):
    """Stop with the file and the offset."""

    def leave_out(self, complaint: str) -> None:
        """Raise Mistake with the complaint."""
        raise Mistake(
            f"{complaint}: convert it, or set data.source.undecodable to Skip() "
            "to leave such documents out."
        )


class Skip(Undecodable):
    """Leave the document out; how many were is reported."""

    def leave_out(self, complaint: str) -> None:
        """Return, whatever the complaint."""


class Source(Node):
    """Documents as strings, file by file, in an order that only the files decide."""

    undecodable: Undecodable = Stop()  # at documents that are not UTF-8; or Skip() and count them

    def shards(self) -> list[Shard]:
        """The input files, in reading order. Raises Mistake where there are none."""
        raise NotImplementedError

    def read(self, shard: Shard) -> Iterator[str | None]:
        """Stream the documents of one file; None stands for a document that is left out.

        Raises Mistake, with the file's name, for input that cannot be read.
        """
        raise NotImplementedError

    def documents(self) -> Iterator[str]:
        """Stream every document of every file."""
        for shard in self.shards():
            yield from (text for text in self.read(shard) if text is not None)

    def fingerprint(self) -> str:
        """A digest of the options and of the files' names, sizes and stamps; no content is read."""
        digest = hashlib.sha256(repr(self).encode())
        for shard in self.shards():
            digest.update(repr(tuple(shard)).encode())
        return digest.hexdigest()

    def decoded(self, data: bytes, where: str, start: int = 0) -> str | None:
        """UTF-8 bytes as text, or None where they are not and `undecodable` leaves them out.

        A NUL is not text: no text has a use for it, and the byte tokenizer ends documents with it.
        `start` is the offset of `data` in the file, for the complaint.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            complaint = f"{where} is not UTF-8 at byte offset {start + error.start}"
        else:
            if "\0" not in text:
                return text
            complaint = (
                f"{where} has a NUL, which no text has, at byte offset {start + data.index(0)}"
            )
        self.undecodable.leave_out(complaint)
        return None

    def checked(self, text: str, where: str) -> str | None:
        """The same for text from a parser: JSON escapes can hold NUL and halves of characters."""
        try:
            return self.decoded(text.encode("utf-8"), where)
        except UnicodeEncodeError as error:
            self.undecodable.leave_out(
                f"{where} has half a surrogate pair at character {error.start}"
            )
            return None


class StandardLibrary(Source):
    """The Python sources of the running interpreter's standard library, without its tests.

    About 12 MB in 700 files, one document a file, on any machine and with nothing to download.
    """

    def shards(self) -> list[Shard]:
        """Every source file, sorted by path."""
        root = Path(sysconfig.get_path("stdlib"))
        paths: list[Path] = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
            paths += [Path(folder, name) for name in names if name.endswith(".py")]
        if not paths:
            raise Mistake(
                f"This interpreter has no standard library sources in {root}: "
                "set data.source to Files(glob=(...,)) with text of your own."
            )
        return [Shard.at(path) for path in sorted(paths)]

    def read(self, shard: Shard) -> Iterator[str | None]:
        """The one document of a source file."""
        try:
            data = Path(shard.name).read_bytes()
        except OSError as error:
            raise Mistake(f"{shard.name} cannot be read: {error.strerror}.") from error
        yield self.decoded(data, shard.name)


# Installed packages are not the library, and its tests hold more data than prose.
_NOT_LIBRARY = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
)
