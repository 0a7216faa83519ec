"""The token store: what is written is what is read, whatever happens while it is written."""

import errno
import itertools
import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Mistake
from pretrain.data import Bytes, Corpus, Data, Files, Skip, Source, Tokenizer, build
from pretrain.data.source import Shard
from pretrain.data.tokenizer import Codec
from pretrain.data.tokens import Tokens, dtype_of

TEXTS = [f"document {index} " + "x" * (index * 37 % 101) for index in range(60)]


class Texts(Source):
    """Documents held in the config, a tuple an input file."""

    files: tuple[tuple[str, ...], ...]

    def shards(self) -> list[Shard]:
        sizes = (sum(map(len, texts)) for texts in self.files)
        return [Shard(str(index), size, "") for index, size in enumerate(sizes)]

    def read(self, shard: Shard) -> Iterator[str | None]:
        yield from self.files[int(shard.name)]


def files(texts: list[str], number: int) -> Texts:
    return Texts(files=tuple(tuple(texts[index::number]) for index in range(number)))


def prepare(source: Source, cache: Path, held_out: float = 0.2, **fields: Any) -> Corpus:
    data = Data(source=source, held_out=held_out, cache=str(cache), **fields)
    return data.prepare(lambda sentence: None)


def documents(tokens: Tokens) -> list[str]:
    codec = Bytes().load()
    return [codec.decode(tokens.document(index)) for index in range(tokens.documents)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the one finished store."""
    (store,) = (path.parent for path in folder.glob("*/manifest.json"))
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "GROUP_BYTES", 500)
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 200)


def split(lengths: list[int], end: int = 0) -> tuple[Tokens, np.ndarray]:
    """Ids 1, 2, 3 ... in shards of these lengths, and the whole."""
    whole = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    shards = np.split(whole, np.cumsum(lengths)[:-1])
    borders = [np.array([len(shard)], np.uint64) for shard in shards]
    return Tokens(shards, borders, vocab=60_000, end=end, text_bytes=0, digest=""), whole


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_windows_across_shards_are_slices_of_the_whole(lengths: list[int], data: Any) -> None:
    tokens, whole = split(lengths)
    assert len(tokens) == len(whole)
    length = data.draw(st.integers(0, len(whole)))
    starts = data.draw(st.lists(st.integers(0, len(whole) - length), max_size=6))
    windows = tokens.windows(np.array(starts, np.int64), length)
    expected = [whole[start : start + length] for start in starts]
    np.testing.assert_array_equal(windows, np.array(expected).reshape(len(starts), length))
    for start in starts:
        np.testing.assert_array_equal(tokens.window(start, length), whole[start : start + length])


def test_windows_outside_the_split_are_refused() -> None:
    tokens, _ = split([4, 3])
    for start, length in ((-1, 2), (0, 8), (7, 1)):
        with pytest.raises(IndexError):
            tokens.window(start, length)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            tokens.document(index)


def test_ids_take_the_smallest_type_that_holds_the_vocabulary() -> None:
    names = {vocab: dtype_of(vocab).name for vocab in (256, 257, 65536, 65537, 262144)}
    assert list(names.values()) == ["uint8", "uint16", "uint16", "uint32", "uint32"]


@pytest.mark.usefixtures("small_groups")
def test_a_store_holds_every_document_once_in_order_with_its_end(tmp_path: Path) -> None:
    source = files(TEXTS, 5)
    corpus = prepare(source, tmp_path)
    assert len(corpus.train._shards) > 2
    kept, held_out = documents(corpus.train), documents(corpus.held_out)
    assert kept and held_out
    assert sorted(kept + held_out) == sorted(TEXTS)
    assert kept == [text for text in source.documents() if text in kept]
    for tokens, texts in ((corpus.train, kept), (corpus.held_out, held_out)):
        stream = b"".join(text.encode() + b"\0" for text in texts)
        assert tokens.window(0, len(tokens)).tobytes() == stream
        assert tokens.bytes == len(stream) - len(texts)


@pytest.mark.usefixtures("small_groups")
def test_the_split_depends_on_a_document_alone(tmp_path: Path) -> None:
    held_out = set(documents(prepare(files(TEXTS, 5), tmp_path).held_out))
    fewer = TEXTS[::-2] * 2
    again = documents(prepare(files(fewer, 2), tmp_path).held_out)
    assert sorted(again) == sorted(text for text in fewer if text in held_out)
    more = set(documents(prepare(files(TEXTS, 5), tmp_path, held_out=0.5).held_out))
    assert held_out < more


def test_nothing_is_held_out_if_the_share_is_zero(tmp_path: Path) -> None:
    corpus = prepare(files(TEXTS, 2), tmp_path, held_out=0.0)
    assert (len(corpus.held_out), corpus.held_out.documents) == (0, 0)
    assert corpus.train.documents == len(TEXTS)


class Crash(Exception):
    """Stands for a kill: it leaves what a kill leaves."""


@pytest.mark.usefixtures("small_groups")
def test_a_killed_build_goes_on_where_it_stopped_to_identical_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(TEXTS, 6)
    prepare(source, tmp_path / "whole")
    read, attempts = Texts.read, []

    def crashing(self: Texts, shard: Shard) -> Iterator[str | None]:
        attempts[-1].append(shard.name)
        for number, text in enumerate(read(self, shard)):
            if number == 5 and attempts in ([["0", "1", "2", "3"]], [["0", "1", "2", "3"], ["3"]]):
                raise Crash
            yield text

    monkeypatch.setattr(Texts, "read", crashing)
    for _ in range(2):
        attempts.append([])
        with pytest.raises(Crash):
            prepare(source, tmp_path / "killed")
        assert not list(tmp_path.glob("killed/*/manifest.json"))
    attempts.append([])
    prepare(source, tmp_path / "killed")
    assert attempts == [["0", "1", "2", "3"], ["3"], ["3", "4", "5"]]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_store_is_opened_without_reading_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = prepare(files(TEXTS, 2), tmp_path)
    monkeypatch.delattr(Texts, "read")
    opened = prepare(files(TEXTS, 2), tmp_path)
    assert opened.train.digest == built.train.digest != built.held_out.digest
    assert documents(opened.train) == documents(built.train)


def test_racing_processes_build_a_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads, told = Texts.read, [], []
    started = threading.Event()

    def slow(self: Texts, shard: Shard) -> Iterator[str | None]:
        reads.append(shard.name)
        started.wait()
        yield from read(self, shard)

    def one() -> None:
        data = Data(source=files(TEXTS, 2), held_out=0.2, cache=str(tmp_path))
        corpora.append(data.prepare(lambda sentence: (told.append(sentence), started.set())))

    corpora: list[Corpus] = []
    monkeypatch.setattr(Texts, "read", slow)
    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({corpus.train.digest for corpus in corpora}) == 1 and len(corpora) == 3
    assert reads == ["0", "1"]


def test_changed_files_make_another_store(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = Files(glob=(str(path),))
    first = prepare(source, tmp_path / "cache")
    with path.open("a") as file:
        file.write('{"text": "one more"}\n')
    second = prepare(source, tmp_path / "cache")
    count = [corpus.train.documents + corpus.held_out.documents for corpus in (first, second)]
    assert count == [60, 61]


def test_files_that_change_while_they_are_read_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = itertools.count()
    monkeypatch.setattr(Texts, "shards", lambda self: [Shard("0", 1, str(next(changes)))])
    with pytest.raises(Mistake, match="changed while they were tokenised"):
        prepare(files(TEXTS, 1), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


class Endless(Source):
    """Far more text than may be held: 100 MB, each document made when it is asked for."""

    def shards(self) -> list[Shard]:
        return [Shard(str(index), 25_000_000, "") for index in range(4)]

    def read(self, shard: Shard) -> Iterator[str | None]:
        for index in range(250):
            yield f"{shard.name} {index} " + "abcdefgh " * 11_000


def test_memory_stays_flat_whatever_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BATCH_CHARACTERS", 1 << 19)
    tracemalloc.start()
    try:
        corpus = prepare(Endless(), tmp_path, held_out=0.05)
        assert len(corpus.train) > 80e6
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_documents_left_out_are_counted_and_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": ""}\n{"text": "\xff"}\n' + b"".join(b'{"text": "%d"}\n' % i for i in range(9))
    )
    told: list[str] = []
    source = Files(glob=(f"{tmp_path}/a.jsonl",), undecodable=Skip())
    data = Data(source=source, held_out=0.0, cache=str(tmp_path / "cache"))
    for _ in range(2):
        told.clear()
        data.prepare(told.append)
        assert told[-2:] == [
            "1 empty documents are left out.",
            "1 documents that are not UTF-8 text are left out.",
        ]


class Letters(Tokenizer):
    """A tokenizer that gives any id."""

    first: int
    unknown: int | None = None

    def load(self) -> Codec:
        class Loaded:
            vocab, end, unknown, fingerprint = 300, 299, self.unknown, str(self.first)

            def encode_batch(_, texts: list[str]) -> list[np.ndarray]:
                return [np.arange(len(text)) % 3 + self.first for text in texts]

            def decode(_, ids: Any) -> str:
                return "?" * len(ids)

        return Loaded()


@pytest.mark.parametrize("first", [-1, 297, 298])
def test_ids_that_no_text_may_have_are_refused_with_the_file(tmp_path: Path, first: int) -> None:
    with pytest.raises(
        Mistake, match=r"text of 0 into id (-1|299|300); ids are below 300, and 299"
    ):
        prepare(files(TEXTS, 2), tmp_path, tokenizer=Letters(first=first))


def test_unknown_tokens_are_counted_and_reported(tmp_path: Path) -> None:
    told: list[str] = []
    tokenizer = Letters(first=5, unknown=6)
    source = files(["abc", "abcde"], 1)
    Data(source=source, tokenizer=tokenizer, held_out=0.0, cache=str(tmp_path)).prepare(told.append)
    assert told[-1] == "3 tokens are unknown to the tokenizer: their text is lost to the model."


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    source = files(TEXTS, 2)
    prepare(source, tmp_path)
    (manifest,) = tmp_path.glob("*/manifest.json")
    ids = manifest.parent / "00000.train.ids"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-1])
    size = f"00000.train.ids has {len(whole) - 1:,} bytes instead of {len(whole):,}"
    with pytest.raises(Mistake, match=f"{manifest.parent} is damaged: delete it .*{size}"):
        prepare(source, tmp_path)
    ids.unlink()
    with pytest.raises(Mistake, match="is damaged: delete it"):
        prepare(source, tmp_path)
    for broken in ('{"vocab"', '{"vocab": 256}', "[]"):
        manifest.write_text(broken)
        with pytest.raises(Mistake, match=r"is damaged: delete it .* \(manifest.json: "):
            prepare(source, tmp_path)


@pytest.mark.usefixtures("small_groups")
def test_a_full_disk_says_what_is_needed_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(TEXTS, 6)
    prepare(source, tmp_path / "whole")
    append = build._Output.append

    def full(self: Any, ids: list[np.ndarray], size: int) -> None:
        if self.name.startswith("00002"):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, ids, size)

    monkeypatch.setattr(build._Output, "append", full)
    expected = r"full is full: it needs about [\d,]{3,} bytes and [\d,]+ are free; make room"
    with pytest.raises(Mistake, match=expected):
        prepare(source, tmp_path / "full")
    monkeypatch.setattr(build._Output, "append", append)
    prepare(source, tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_when_buffers_are_flushed_is_noticed(tmp_path: Path) -> None:
    source = files(TEXTS, 1)
    made = build.Build(tmp_path, source, Bytes().load(), 0.2, lambda sentence: None)
    made._partial.mkdir()
    (made._partial / "00000.train.ids").symlink_to("/dev/full")
    with pytest.raises(Mistake, match="is full: it needs about"):
        prepare(source, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match=r"file/cache cannot be written .*: set data.cache"):
        prepare(files(TEXTS, 1), tmp_path / "file" / "cache")


def test_shares_that_leave_a_split_empty_are_refused(tmp_path: Path) -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(Mistake, match=f"data.held_out is {share}"):
            prepare(files(TEXTS, 1), tmp_path, held_out=share)
    with pytest.raises(Mistake, match=r"0.01 of 1 documents leaves 1 to train on and 0 held out"):
        prepare(files(["text"], 1), tmp_path, held_out=0.01)
    with pytest.raises(Mistake, match=r"of 1 documents leaves 0 to train on and 1 held out"):
        prepare(files(["text"], 1), tmp_path, held_out=0.999)
    with pytest.raises(Mistake, match="has no text: 2 documents are empty or left out"):
        prepare(files(["", ""], 1), tmp_path)


def test_the_default_cache_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Data(source=files(TEXTS, 1), held_out=0.2).prepare(lambda sentence: None)
    assert len(list(tmp_path.glob("xdg/pretrain/tokens/*/manifest.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    Data(source=files(TEXTS, 1), held_out=0.2).prepare(lambda sentence: None)
    assert len(list(tmp_path.glob(".cache/pretrain/tokens/*/manifest.json"))) == 1


def test_the_standard_library_becomes_tokens_byte_for_byte(tmp_path: Path) -> None:
    data = Data(cache=str(tmp_path))
    corpus = data.prepare(lambda sentence: None)
    found = {bytes(corpus.train.document(index)) for index in range(corpus.train.documents)}
    found |= {bytes(corpus.held_out.document(i)) for i in range(corpus.held_out.documents)}
    assert found == {text.encode() for text in data.source.documents() if text}
