"""Data: a source of text, a tokenizer, the store of its tokens, and the order of reading them.

source, files   where documents come from
tokenizer       how text becomes token ids
store, tokens   the ids on disk, written once and read at random
corpus          the `Data` node, which puts these together
order, loader   which windows a batch holds, and batches on devices
"""

from pretrain.data.corpus import Corpus, Data
from pretrain.data.files import Files, Separated, WholeFile
from pretrain.data.source import Skip, Source, StandardLibrary, Stop
from pretrain.data.tokenizer import Bytes, HuggingFace, SentencePiece, Tokenizer

__all__ = [
    "Bytes",
    "Corpus",
    "Data",
    "Files",
    "HuggingFace",
    "SentencePiece",
    "Separated",
    "Skip",
    "Source",
    "StandardLibrary",
    "Stop",
    "Tokenizer",
    "WholeFile",
]
