"""Sources: every format gives its documents, and every bad input one sentence that names it."""

import gzip
import json
import os
import sysconfig
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Mistake
from pretrain.data import Files, Separated, Skip, StandardLibrary, files

TEXTS = ["first\r\nline", "grüße, 世界 🎉", "", "a" * 3000]


def zstd(data: bytes) -> bytes:
    """Two frames, as concatenated files have them."""
    half = len(data) // 2
    return b"".join(
        zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:])
    )


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, field: text}).encode() + b"\n" for text in texts)


def parquet(path: Path, column: pa.Array, name: str = "text") -> None:
    pq.write_table(pa.table({"id": [0] * len(column), name: column}), path)


def read(path: Path, **options: object) -> list[str | None]:
    source = Files(glob=(str(path),), **options)
    return [text for shard in source.shards() for text in source.read(shard)]


def complaint(path: Path, **options: object) -> str:
    with pytest.raises(Mistake) as error:
        read(path, **options)
    return str(error.value)


def test_standard_library_is_sorted_whole_files_without_tests_and_packages() -> None:
    source = StandardLibrary()
    shards = source.shards()
    names = [shard.name for shard in shards]
    assert sorted(names, key=Path) == names
    assert sum(shard.size for shard in shards) > 8e6
    folders = {part for name in names for part in Path(name).parts[:-1]}
    root = Path(sysconfig.get_path("stdlib"))
    assert not {"test", "tests", "idle_test", "site-packages"} & (folders - set(root.parts))
    shard = next(shard for shard in shards if shard.name == str(root / "ast.py"))
    assert list(source.read(shard)) == [(root / "ast.py").read_bytes().decode()]


def test_standard_library_documents_are_all_text() -> None:
    source = StandardLibrary()
    sizes = sum(len(text.encode()) for text in source.documents())
    assert sizes == sum(shard.size for shard in source.shards())


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_json_lines_give_the_field_of_every_line(tmp_path: Path, ending: str, packed: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed]
    path = tmp_path / f"a{ending}{packed}"
    path.write_bytes(pack(json_lines(TEXTS, "body") + b"\n  \n"))
    assert read(path, field="body") == TEXTS


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_plain_text_file_is_one_document_byte_for_byte(tmp_path: Path, packed: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed]
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(pack("\n".join(TEXTS).encode()))
    assert read(path) == ["\n".join(TEXTS)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_parquet_gives_every_row_of_the_column(tmp_path: Path, kind: pa.DataType) -> None:
    values = [text.encode() if kind == pa.binary() else text for text in TEXTS]
    parquet(tmp_path / "a.parquet", pa.array(values * 100, kind), "body")
    assert read(tmp_path / "a.parquet", field="body") == TEXTS * 100


def test_parquet_reads_dictionary_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.array(TEXTS).dictionary_encode())
    assert read(tmp_path / "a.parquet") == TEXTS


@settings(max_examples=100, deadline=None)
@given(
    block=st.integers(1, 20),
    pieces=st.lists(st.text("ab|\n", max_size=9)),
    by=st.text("ab|\n", min_size=1, max_size=3),
)
def test_separated_documents_do_not_depend_on_block_borders(
    block: int, pieces: list[str], by: str
) -> None:
    data = by.join(pieces).encode()
    blocks = (data[i : i + block] for i in range(0, len(data), block))
    found = list(Separated(by=by).cut(blocks, "name"))
    whole = data.split(by.encode())
    assert [piece for _, piece in found] == (whole if whole[-1] else whole[:-1])
    assert all(data[start:].startswith(piece) for start, piece in found)


def test_patterns_are_joined_without_repetition_and_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/deep/a.txt", "a.txt", "c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    patterns = (f"{tmp_path}/**/*.txt", f"{tmp_path}/b*", f"{tmp_path}/*.md")
    assert list(Files(glob=patterns).documents()) == ["a.txt", "b.txt", "c.md", "sub/deep/a.txt"]


def test_files_may_lie_on_another_file_system() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/corpus/a.jsonl", json_lines(TEXTS))
    source = Files(glob=("memory://corpus/*.jsonl",))
    assert list(source.documents()) == TEXTS
    before = source.fingerprint()
    system.pipe("/corpus/a.jsonl", json_lines(TEXTS))
    assert source.fingerprint() != before


def test_not_utf8_names_the_file_and_the_offset_in_it(tmp_path: Path) -> None:
    bad = b"good \xc3\xbc text" + b"\xff\xfe"
    (tmp_path / "a.txt").write_bytes(bad)
    assert f"{tmp_path}/a.txt is not UTF-8 at byte offset 12" in complaint(tmp_path / "a.txt")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bad))
    assert "byte offset 12" in complaint(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\nth\xffree\n")
    assert "b.txt is not UTF-8 at byte offset 10" in complaint(
        tmp_path / "b.txt", plain=Separated(by="\n")
    )
    lines = json_lines(["one"])
    (tmp_path / "a.jsonl").write_bytes(lines + b'{"text": "\xff"}\n')
    expected = f"a.jsonl line 2 is not UTF-8 at byte offset {len(lines) + 10}"
    assert expected in complaint(tmp_path / "a.jsonl")


def test_invalid_strings_in_parquet_name_the_row(tmp_path: Path) -> None:
    column = pa.array([b"good", b"b\xffad"]).view(pa.string())
    parquet(tmp_path / "a.parquet", column)
    assert "a.parquet row 2 is not UTF-8 at byte offset 1" in complaint(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", undecodable=Skip()) == ["good", None]


def test_skip_leaves_out_the_document_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        json_lines(["one"]) + b'{"text": "\xff"}\n' + json_lines(["two"])
    )
    assert read(tmp_path / "a.jsonl", undecodable=Skip()) == ["one", None, "two"]
    source = Files(glob=(f"{tmp_path}/*",), undecodable=Skip())
    assert list(source.documents()) == ["one", "two"]


def test_nul_and_half_characters_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\0c")
    assert "a.txt has a NUL, which no text has, at byte offset 2" in complaint(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "a\\u0000"}\n')
    assert "a.jsonl line 2 has a NUL" in complaint(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "ab\\ud800"}\n')
    assert "b.jsonl line 1 has half a surrogate pair at character 2" in complaint(
        tmp_path / "b.jsonl"
    )
    assert read(tmp_path / "b.jsonl", undecodable=Skip()) == [None]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'["text"]', "line 2 holds a JSON list"),
        (b'{"body": "a", "id": 3}', "line 2 has no field 'text': set data.source.field to one of"),
        (b'{"body": "a", "id": 3}', "['body', 'id']"),
        (b'{"text": 3}', "line 2 has a field 'text' of type int"),
        (b'{"text": null}', "line 2 has a field 'text' of type null"),
    ],
)
def test_a_bad_json_line_names_file_and_line(tmp_path: Path, line: bytes, expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["fine"]) + line + b"\n")
    assert f"{tmp_path}/a.jsonl " in complaint(tmp_path / "a.jsonl")
    assert expected in complaint(tmp_path / "a.jsonl", undecodable=Skip())


def test_parquet_without_a_text_column_names_what_there_is(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.array(["x"]), "body")
    assert "no column 'text': set data.source.field to one of ['id', 'body']" in complaint(
        tmp_path / "a.parquet"
    )
    assert "row 1 has a field 'id' of type int" in complaint(tmp_path / "a.parquet", field="id")
    parquet(tmp_path / "b.parquet", pa.array(["x", None]))
    assert "row 2 has a field 'text' of type null" in complaint(tmp_path / "b.parquet")


def test_patterns_that_give_nothing_are_named(tmp_path: Path) -> None:
    assert "missing/*.txt' matches no file" in complaint(tmp_path / "missing" / "*.txt")
    assert "matches folders only" in complaint(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    assert "matches 2 files, and they are all empty" in complaint(tmp_path / "*.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere")
    assert "cannot be listed" in complaint(tmp_path / "*.txt")
    with pytest.raises(Mistake, match=r"'a\.txt': write a tuple"):
        Files(glob="a.txt").shards()  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="'nosuch://a' cannot be listed: Protocol not known"):
        Files(glob=("nosuch://a",)).shards()
    (tmp_path / "a.txt").write_text("a")
    assert "plain.by is empty" in complaint(tmp_path / "a.txt", plain=Separated(by=""))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.zst"])
def test_a_cut_or_garbled_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = [str(i * 7919) for i in range(2000)]
    if name.endswith("parquet"):
        parquet(path, pa.array(texts))
    else:
        path.write_bytes((gzip.compress if name.endswith("gz") else zstd)(json_lines(texts)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 10])
    assert f"{path} cannot be read" in complaint(path)
    path.write_bytes(b"not what the ending says")
    assert f"{path} cannot be read" in complaint(path)


def test_a_plain_text_file_too_long_for_one_document_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WHOLE_FILE_BYTES", 1 << 20)
    (tmp_path / "a.txt").write_text("line\n" * 300_000)
    assert "a.txt is one document of more than 1 MiB: set data.source.plain" in complaint(
        tmp_path / "a.txt"
    )
    assert read(tmp_path / "a.txt", plain=Separated(by="\n")) == ["line"] * 300_000


def test_the_fingerprint_follows_files_and_options(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = Files(glob=(str(path),))
    before = source.fingerprint()
    assert source.fingerprint() == before
    assert Files(glob=(str(path),), undecodable=Skip()).fingerprint() != before
    path.write_text("three")
    assert source.fingerprint() != before
    path.write_text("two")
    os.utime(path, ns=(0, 1))  # the size of old, at another time
    assert source.fingerprint() != before
    (tmp_path / "link.txt").symlink_to(path)
    linked = Files(glob=(f"{tmp_path}/link.txt",))
    before = linked.fingerprint()
    os.utime(path, ns=(0, 2))
    assert linked.fingerprint() != before
