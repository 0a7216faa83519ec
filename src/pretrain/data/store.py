"""The token store of a source: opened where it is there, built first where it is not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.config import Mistake
from pretrain.data.build import SPLITS, Build
from pretrain.data.source import Source
from pretrain.data.tokenizer import Codec
from pretrain.data.tokens import Tokens, dtype_of


class Store(NamedTuple):
    """An open store."""

    train: Tokens
    held_out: Tokens
    counts: dict[str, int]  # documents left out, "empty" and "undecodable"; "unknown" tokens


def prepare(
    root: Path, source: Source, codec: Codec, held_out: float, report: Callable[[str], None]
) -> Store:
    """The store of a source under `root`, which is built first if it is not there.

    Processes that want the same store take turns: one builds, the others wait and open it. `report`
    is told what happens, a sentence at a time. Raises Mistake for input that cannot be tokenised, a
    disk that is full, and a store that is damaged.
    """
    build = Build(root, source, codec, held_out, report)
    if not build.directory.exists():
        with build.turn():
            if not build.directory.exists():
                build.run()
    return open_store(build.directory)


def open_store(directory: Path) -> Store:
    """A finished store. Raises Mistake where a file is missing, unreadable, or has another size."""
    damaged = f"The token store {directory} is damaged: delete it and it is built again"
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        train, held_out = (_split(directory, manifest, name) for name in SPLITS)
        return Store(train, held_out, manifest["counts"])
    except OSError as error:
        raise Mistake(f"{damaged} ({error}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{damaged} (manifest.json: {error!r}).") from error


def _split(directory: Path, manifest: dict[str, Any], name: str) -> Tokens:
    parts = [part for part in manifest["splits"][name] if part["tokens"]]
    ids = dtype_of(manifest["vocab"])
    digests = "".join(part["sha256"] for part in parts)
    return Tokens(
        [_mapped(directory / f"{part['name']}.ids", ids, part["tokens"]) for part in parts],
        [_mapped(directory / f"{part['name']}.ends", "<u8", part["documents"]) for part in parts],
        vocab=manifest["vocab"],
        end=manifest["end"],
        text_bytes=sum(part["bytes"] for part in parts),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
    )


def _mapped(path: Path, dtype: np.dtype | str, length: int) -> np.ndarray:
    size, expected = path.stat().st_size, length * np.dtype(dtype).itemsize
    if size != expected:
        raise OSError(f"{path.name} has {size:,} bytes instead of {expected:,}")
    # A plain array over the map: every slice of an np.memmap pays for the subclass.
    return np.asarray(np.memmap(path, dtype, mode="r"))
