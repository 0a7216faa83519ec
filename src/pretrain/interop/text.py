"""What a Hugging Face directory has beside the model: its tokenizer, and how it is to write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config import Mistake
from pretrain.data.tokenizer import Bytes, Codec, HuggingFace, SentencePiece, Tokenizer

FAST, PIECES = "tokenizer.json", "tokenizer.model"
SETTINGS = "tokenizer_config.json"
GENERATION = "generation_config.json"
FILES = (
    FAST, SETTINGS, PIECES, "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", GENERATION,
)  # fmt: skip
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def files(directory: Path) -> dict[str, bytes]:
    """The files that a directory has of those that are no weights and no config."""
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}


def generation(config: Mapping[str, Any]) -> dict[str, bytes]:
    """A generation file with the special ids of a config.json."""
    said = {key: config[key] for key in SPECIAL if config.get(key) is not None}
    return {GENERATION: (json.dumps(said, indent=2) + "\n").encode()}


def tokenizer(directory: Path, config: Mapping[str, Any]) -> HuggingFace | SentencePiece | None:
    """The tokenizer of a directory, documents ending as its config.json says; None where it has none."""
    if (directory / FAST).exists():
        path, ends = directory / FAST, _ids(config.get("eos_token_id"))
        return HuggingFace(path=str(path), end=_token(path, ends[0]) if ends else None)
    if (directory / PIECES).exists():
        return SentencePiece(path=str(directory / PIECES))
    return None


def exported(tokenizer: Tokenizer, codec: Codec) -> dict[str, bytes]:
    """The files from which `transformers` reads a tokenizer of ours, which `codec` is, loaded.

    Raises Mistake for one that it has no class for.
    """
    if isinstance(tokenizer, HuggingFace):
        path = Path(tokenizer.path).expanduser()
        return {FAST: path.read_bytes(), SETTINGS: _settings(_token(path, codec.end))}
    if isinstance(tokenizer, SentencePiece):
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "legacy": False}
        return {
            PIECES: Path(tokenizer.path).expanduser().read_bytes(),
            SETTINGS: json.dumps(settings, indent=2).encode(),
        }
    if isinstance(tokenizer, Bytes):
        return {FAST: json.dumps(_bytes(), ensure_ascii=True).encode(), SETTINGS: _settings("\0")}
    raise Mistake(f"transformers has no class for the tokenizer {type(tokenizer).__name__}.")


def _ids(said: Any) -> list[int]:
    """Ids that a config gives as none, as one or as a list."""
    return [] if said is None else list(said) if isinstance(said, list) else [said]


def _token(path: Path, id_: int) -> str | None:
    """How a tokenizer.json spells an id."""
    from tokenizers import Tokenizer as Tokenizers

    try:
        return Tokenizers.from_file(str(path)).id_to_token(id_)
    except Exception as error:  # the library raises bare Exception
        raise Mistake(f"{path} is not a tokenizer.json: {error}.") from error


def _bytes() -> dict[str, Any]:
    """The tokenizer.json of `Bytes`: byte-level BPE without merges, byte 0 the end of a document."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    # How byte-level tokenizers spell bytes: printable ones as they are, the others from U+0100 on.
    spelt = {byte: chr(byte) for byte in plain} | {b: chr(256 + n) for n, b in enumerate(others)}
    spelt[0] = "\0"  # so that this one is no text's
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    end = {
        "id": 0, "content": "\0", "special": True, "normalized": False, "single_word": False,
        "lstrip": False, "rstrip": False,
    }  # fmt: skip
    vocab = {spelt[byte]: byte for byte in range(256)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
            "merges": [],
        },
    }  # fmt: skip


def _settings(end: str | None) -> bytes:
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return (json.dumps(said, indent=2) + "\n").encode()
