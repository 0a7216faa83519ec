"""Tokenizers: text survives the round trip, no text ends a document, bad files get one sentence."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pretrain.config import Mistake
from pretrain.data import Bytes, HuggingFace, SentencePiece

TEXT = "def main(arguments):\n    return sorted(arguments) # <|endoftext|> größe\n" * 20
# What a source can give: no NUL, no half characters.
TEXTS = st.text().map(lambda text: text.replace("\0", ""))


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_level(["<|endoftext|>"]).save(str(folder / "one.json"))
    byte_level(["<s>", "</s>", "<|turn|>"]).save(str(folder / "known.json"))
    byte_level(["<|a|>", "<|b|>"]).save(str(folder / "ambiguous.json"))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=["<doc>"],
        minloglevel=2,
    )
    (folder / "sp.model").write_bytes(model.getvalue())
    return folder


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_bytes_survive_the_round_trip_and_never_end_a_document(texts: list[str]) -> None:
    codec = Bytes().load()
    encoded = codec.encode_batch(texts)
    assert [codec.decode(ids) for ids in encoded] == texts
    assert codec.vocab == 256
    assert all(codec.end not in ids and ids.dtype == np.uint8 for ids in encoded)


def test_bytes_decode_what_a_model_may_say() -> None:
    assert Bytes().load().decode([97, 0xC3, 98]) == "a\ufffdb"


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
@pytest.mark.parametrize("name", ["one.json", "sp.model"])
def test_files_survive_the_round_trip_and_never_end_a_document(
    folder: Path, name: str, texts: list[str]
) -> None:
    node = (SentencePiece if name == "sp.model" else HuggingFace)(path=str(folder / name))
    codec = node.load()
    texts = [text + "<|endoftext|></s>" for text in texts]
    encoded = codec.encode_batch(texts)
    # SentencePiece takes the first space of a text for its own.
    strip = str.lstrip if name == "sp.model" else str
    assert [strip(codec.decode(ids)) for ids in encoded] == [strip(text) for text in texts]
    assert all(ids.max() < codec.vocab and codec.end not in ids for ids in encoded)


def test_the_vocabulary_counts_special_tokens_and_gaps(folder: Path, tmp_path: Path) -> None:
    codec = HuggingFace(path=str(folder / "one.json")).load()
    assert (codec.vocab, codec.end) == (301, 0)
    value = json.loads((folder / "one.json").read_text())
    vocab = value["model"]["vocab"]
    vocab["far"] = 999
    (tmp_path / "gap.json").write_text(json.dumps(value))
    assert HuggingFace(path=str(tmp_path / "gap.json")).load().vocab == 1000


def test_truncation_and_padding_in_the_file_are_ignored(folder: Path, tmp_path: Path) -> None:
    tokenizer = byte_level(["<|endoftext|>"])
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "cut.json"))
    codec = HuggingFace(path=str(tmp_path / "cut.json")).load()
    assert [codec.decode(ids) for ids in codec.encode_batch(["ab", TEXT])] == ["ab", TEXT]


def test_the_end_token_is_found_where_only_one_can_be_meant(folder: Path) -> None:
    for name, end, token in (
        ("one.json", None, "<|endoftext|>"),
        ("known.json", None, "</s>"),
        ("known.json", "<|turn|>", "<|turn|>"),
        ("ambiguous.json", "<|b|>", "<|b|>"),
    ):
        codec = HuggingFace(path=str(folder / name), end=end).load()
        assert codec.decode([codec.end]) == token
    codec = SentencePiece(path=str(folder / "sp.model"), end="<doc>").load()
    assert codec.end == 3


def test_an_end_token_in_doubt_lists_the_candidates(folder: Path) -> None:
    for node, expected in (
        (
            HuggingFace(path=f"{folder}/ambiguous.json"),
            "tokenizer.end to one of ['<|a|>', '<|b|>']",
        ),
        (HuggingFace(path=f"{folder}/ambiguous.json", end="</x>"), "no token '</x>': set"),
        (
            SentencePiece(path=f"{folder}/sp.model", end="</x>"),
            "no end-of-document piece </x>: set",
        ),
        (SentencePiece(path=f"{folder}/sp.model", end="</x>"), "['<s>', '</s>', '<doc>']"),
    ):
        with pytest.raises(Mistake) as error:
            node.load()
        assert expected in str(error.value)


@pytest.mark.parametrize("node", [HuggingFace, SentencePiece])
def test_a_file_that_is_missing_or_something_else_is_named(
    tmp_path: Path, node: type[HuggingFace] | type[SentencePiece]
) -> None:
    with pytest.raises(Mistake, match="nowhere cannot be read: No such file"):
        node(path=str(tmp_path / "nowhere")).load()
    for content in (b"{}", b"\xff\xfe", b"", b"not a tokenizer"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(Mistake, match="other is not a "):
            node(path=str(tmp_path / "other")).load()


def test_the_unknown_token_is_known(folder: Path, tmp_path: Path) -> None:
    assert HuggingFace(path=str(folder / "one.json")).load().unknown is None
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    words.add_special_tokens(["</s>"])
    words.save(str(tmp_path / "words.json"))
    codec = HuggingFace(path=str(tmp_path / "words.json")).load()
    assert codec.unknown == 0
    assert codec.encode_batch(["b"])[0].tolist() == [0]
    assert SentencePiece(path=str(folder / "sp.model")).load().unknown == 0


def test_fingerprints_differ_with_the_file_and_the_end_token(folder: Path) -> None:
    nodes = (
        Bytes(),
        HuggingFace(path=str(folder / "one.json")),
        HuggingFace(path=str(folder / "known.json")),
        HuggingFace(path=str(folder / "known.json"), end="<s>"),
        SentencePiece(path=str(folder / "sp.model")),
        SentencePiece(path=str(folder / "sp.model"), end="<doc>"),
    )
    assert len({node.load().fingerprint for node in nodes}) == len(nodes)
    assert nodes[1].load().fingerprint == nodes[1].load().fingerprint
