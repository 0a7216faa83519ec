"""Tokenizers: text to token ids and back. A node names one; `load()` gives the codec that works."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.config import Mistake, Node


class Codec(Protocol):
    """A loaded tokenizer."""

    vocab: int  # ids are 0 ... vocab - 1, special tokens included
    end: int  # id of the end-of-document token; no text encodes to it
    unknown: int | None  # id that stands for text the tokenizer cannot express, where it has one
    fingerprint: str  # equal for tokenizers that encode alike

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD."""
        ...


class Tokenizer(Node):
    """Base of the tokenizers that a config can name."""

    def load(self) -> Codec:
        """Read what the tokenizer needs. Raises Mistake where that cannot be read."""
        raise NotImplementedError


class Bytes(Tokenizer):
    """The UTF-8 bytes of the text: vocabulary 256, nothing to train or download, lossless."""

    def load(self) -> Codec:
        """The codec; there is nothing to read."""
        return _Bytes()


class HuggingFace(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library."""

    path: str  # the tokenizer.json
    end: str | None = None  # text of the end-of-document token; None finds it in the file

    def load(self) -> Codec:
        """Read the file. Raises Mistake where it is no tokenizer, or its end token is ambiguous."""
        return _HuggingFace(_file(self.path), self.path, self.end)


class SentencePiece(Tokenizer):
    """A SentencePiece model file."""

    path: str  # the .model
    end: str | None = None  # piece that ends a document; None is the model's own end of sequence

    def load(self) -> Codec:
        """Read the model. Raises Mistake where it is none, or has no such piece."""
        return _SentencePiece(_file(self.path), self.path, self.end)


class _Bytes:
    vocab = 256
    # Byte 0 occurs in no text (sources refuse it), so ids stay bytes and the vocabulary 256.
    end = 0
    unknown: int | None = None
    fingerprint = "bytes"

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(np.asarray(ids, np.uint8)).decode("utf-8", "replace")


# What published tokenizers call the token between documents.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|endofdoc|>")


class _HuggingFace:
    def __init__(self, data: bytes, path: str, end: str | None) -> None:
        from tokenizers import Tokenizer as Tokenizers

        try:
            self._tokenizer = Tokenizers.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise Mistake(f"{path} is not a tokenizer.json: {error}.") from error
        # A file may carry the truncation and padding of some fine-tuning: they would cut documents.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" written in a document is text, not a border.
        self._tokenizer.encode_special_tokens = True
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values()) + 1
        self.end = ids[_end(end, ids, self._special(), path)]
        model = json.loads(data)["model"]
        unknown = model.get("unk_token")
        self.unknown: int | None = model.get("unk_id") if unknown is None else ids.get(unknown)
        self.fingerprint = hashlib.sha256(data + repr(end).encode()).hexdigest()

    def _special(self) -> list[str]:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


class _SentencePiece:
    def __init__(self, data: bytes, path: str, end: str | None) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model: Any = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise Mistake(f"{path} is not a SentencePiece model: {error}.") from error
        self.vocab = self._model.vocab_size()
        self.unknown: int | None = self._model.unk_id()
        self.end = self._model.eos_id() if end is None else self._model.piece_to_id(end)
        if self.end < 0 or self.end == self.unknown:
            controls = [
                self._model.id_to_piece(i) for i in range(self.vocab) if self._model.is_control(i)
            ]
            raise Mistake(
                f"{path} has no end-of-document piece {end or ''}: "
                f"set data.tokenizer.end to one of {controls}."
            )
        self.fingerprint = hashlib.sha256(data + repr(end).encode()).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids, np.uint32) for ids in self._model.encode(texts, out_type=int)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._model.decode(np.asarray(ids).tolist())


def _file(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise Mistake(f"data.tokenizer.path {path} cannot be read: {error.strerror}.") from error


def _end(chosen: str | None, ids: dict[str, int], special: list[str], path: str) -> str:
    """Text of the end token: the chosen one, the only special one, or the only well-known one."""
    if chosen is not None:
        if chosen in ids:
            return chosen
        raise Mistake(
            f"{path} has no token {chosen!r}: set data.tokenizer.end to one of {special}."
        )
    known = [text for text in _ENDS if text in ids]
    for candidates in (special, known):
        if len(candidates) == 1:
            return candidates[0]
    raise Mistake(
        f"{path} does not say which token ends a document: set data.tokenizer.end to one of "
        f"{known or special or 'its tokens'}."
    )
