"""`Data`, the node that says what a model is trained on, and the `Corpus` it prepares."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pretrain.config import Mistake, Node
from pretrain.data import store
from pretrain.data.source import Source, StandardLibrary
from pretrain.data.tokenizer import Bytes, Codec, Tokenizer
from pretrain.data.tokens import Tokens


class Corpus(NamedTuple):
    """Text as tokens, ready to be read."""

    train: Tokens
    held_out: Tokens
    tokenizer: Codec


class Data(Node):
    """What the model is trained on: text, how it becomes tokens, and what is kept back."""

    source: Source = StandardLibrary()  # where documents come from
    tokenizer: Tokenizer = Bytes()  # how text becomes token ids
    mask_documents: bool = False  # no attention and no loss across the borders of documents
    held_out: float = 0.02  # share of documents kept from training, to evaluate on
    offset: int = 0  # sequences of the shuffled order that are passed over before the first step
    # directory of token stores; None is ~/.cache/pretrain/tokens ($XDG_CACHE_HOME)
    cache: str | None = None

    def check(self) -> None:
        """Raises Mistake where a field is out of range."""
        if not 0 <= self.held_out < 1:
            raise Mistake(
                f"data.held_out is {self.held_out}: it is a share, 0 or more and less than 1."
            )
        if self.offset < 0:
            raise Mistake(f"data.offset is {self.offset}: it is 0 or more sequences.")

    def prepare(self, report: Callable[[str], None]) -> Corpus:
        """Tokenise the source, or open the store where that was done before.

        `report` is told what happens and how much there is, a sentence at a time. Raises Mistake
        for input that cannot be used; what is tokenised by then is kept.
        """
        self.check()
        codec = self.tokenizer.load()
        train, held_out, counts = store.prepare(
            self._cache(), self.source, codec, self.held_out, report
        )
        documents = train.documents + held_out.documents
        if not documents:
            raise Mistake(
                f"data.source has no text: {sum(counts.values())} documents are empty or left out."
            )
        if not train.documents or (self.held_out and not held_out.documents):
            raise Mistake(
                f"data.held_out = {self.held_out} of {documents} documents leaves "
                f"{train.documents} to train on and {held_out.documents} held out: "
                "choose another share, use more documents, or hold out 0."
            )
        report(
            f"{(train.bytes + held_out.bytes) / 1e6:,.1f} MB of text in {documents:,} documents: "
            f"{len(train):,} tokens to train on, "
            f"{len(held_out):,} in {held_out.documents:,} documents held out."
        )
        for kind, sentence in _COUNTS.items():
            if counts.get(kind):
                report(sentence.format(counts[kind]))
        return Corpus(train, held_out, codec)

    def _cache(self) -> Path:
        if self.cache is not None:
            return Path(self.cache).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home, "pretrain", "tokens").expanduser()


_COUNTS = {
    "empty": "{:,} empty documents are left out.",
    "undecodable": "{:,} documents that are not UTF-8 text are left out.",
    "unknown": "{:,} tokens are unknown to the tokenizer: their text is lost to the model.",
}
