from __future__ import annotations

import bz2
import gzip
import http.server
import io
import lzma
import os
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import pytest
import zstandard

from pipeline.config.errors import UserError
from pipeline.corpus.sources.finding import find_files
from pipeline.corpus.sources.opening import SourceFile, kind_of, open_file, source_errors
from pipeline.corpus.sources.unpacking import EXPANSION
from tests.corpus.corpora import run

MOST = 1 << 30


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(source: Path | str, format: str = "auto") -> list[str]:
    return [file.name for file in find_files(str(source), format)]


def test_a_folder_gives_its_data_files_sorted_and_nothing_that_describes_them(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jsonl", "a/x.parquet", "a.csv.gz", "README.md", "LICENSE", ".cache/z.jsonl", "dataset_infos.json"
    )
    assert names(tmp_path) == ["a.csv.gz", "a/x.parquet", "b.jsonl"]
    assert names(f"{tmp_path}/", "jsonl") == ["b.jsonl"]


def test_a_glob_is_named_from_its_last_fixed_folder(tmp_path: Path) -> None:
    touch(tmp_path, "data/2023/a.jsonl", "data/2024/a.jsonl", "data/2024/b.txt")
    assert names(tmp_path / "data/*/*.jsonl") == ["2023/a.jsonl", "2024/a.jsonl"]
    assert names(tmp_path / "data/**/*.jsonl") == ["2023/a.jsonl", "2024/a.jsonl"]


def test_a_file_with_magic_characters_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "part[1].jsonl", "part1.jsonl")
    assert names(tmp_path / "part[1].jsonl") == ["part[1].jsonl"]


def test_a_relative_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    (file,) = find_files("a.jsonl")
    monkeypatch.chdir("/")
    assert open_file(file, MOST).read() == b"a.jsonl"


@pytest.mark.parametrize("name", ["notes.docx", "notes", "notes.gz"])
def test_an_extension_that_says_no_format_is_an_error_unless_the_manifest_says_it(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(UserError, match="cannot infer the format from the file extension") as error:
        find_files(str(tmp_path / name))
    assert ".jsonl" in error.value.hint
    assert find_files(str(tmp_path / name), "text")[0].format == "text"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "source file not found"),
        ("nowhere/*.jsonl", "the glob matches no file"),
        ("empty", "no data files in the source"),
        ("nonsense://bucket/x.jsonl", "unknown kind of source"),
        ("dropbox://x.jsonl", "a package for this kind of source is missing"),
        ("hf://models/x", "not a dataset on the Hub"),
        ("data:text/plain,hello", "a data: URL cannot be a source"),
        ("data:application/json;base64,eyJ0ZXh0IjoieCJ9", "a data: URL cannot be a source"),
        ("dir://x.jsonl", "source cannot be listed"),
        ("reference://x.jsonl", "source cannot be listed"),
        ("tar://x.jsonl::notes.txt", "source cannot be listed"),
        ("a\0b.jsonl", "unknown kind of source"),
    ],
)
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no archive")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        find_files(source)
    assert source in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.jsonl")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/notes \xe9"))).write_bytes(b"")  # no data: left out
    assert names(tmp_path) == ["a.jsonl"]
    assert r"notes \udce9" in capsys.readouterr().err
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    latin.write_bytes(b"{}")
    for source in (tmp_path, latin, tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match=r"the name of a file is not UTF-8: caf\\udce9\.jsonl"):
            names(source)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of another user's, while this process has no rights but everyone's."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        for folder in Path(name).glob("*"):
            folder.chmod(0o755)


def test_a_folder_that_may_not_be_listed_is_an_error(unprivileged: Path) -> None:
    touch(unprivileged, "a/1.jsonl", "b/2.jsonl", "c/d/3.jsonl", ".hidden/4.jsonl")
    for folder in ("b", ".hidden"):
        (unprivileged / folder).chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    for source in (".", "*/*.jsonl", "**/*.jsonl", "b"):
        with pytest.raises(UserError, match=r"a folder of the source cannot be listed: .*/b "):
            names(f"{unprivileged}/{source}".removesuffix("/."))
    assert names(unprivileged / "[ac]/*.jsonl") == ["a/1.jsonl"]
    assert names(unprivileged / "c") == ["d/3.jsonl"]
    assert names(unprivileged / "a/1.jsonl") == ["1.jsonl"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        open_file(SourceFile("x.jsonl", f"file://{tmp_path}/x.jsonl", "jsonl", None), MOST)


def test_where_a_folder_has_no_file_of_the_format_its_extensions_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match="no csv files in the source") as error:
        find_files(str(tmp_path), "csv")
    assert error.value.hint == "extensions looked for: .csv (and .gz, .zst, .bz2, .xz); left out: 1 of another format"


def test_any_fsspec_file_system_is_a_source() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/corpus/a.jsonl": b"one", "/corpus/b/c.txt": b"two"})
    assert names("memory://corpus") == ["a.jsonl", "b/c.txt"]
    assert names("memory://corpus/*.jsonl") == ["a.jsonl"]
    assert [open_file(file, MOST).read() for file in find_files("memory://corpus")] == [b"one", b"two"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL at which a web server gives it."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_behind_http_is_a_source(served: tuple[Path, str]) -> None:
    folder, url = served
    touch(folder, "a.jsonl")
    (file,) = find_files(f"{url}/a.jsonl")
    assert (file.name, open_file(file, MOST).read()) == ("a.jsonl", b"a.jsonl")
    with pytest.raises(UserError, match="source file not found"):
        find_files(f"{url}/b.jsonl")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's cache as it is after two downloads, and no network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "datasets--owner--name"
    touch(repository / "snapshots" / commit, "main/train-0.parquet", "main/test-0.parquet", "all.jsonl", "README.md")
    touch(repository, "refs/main")
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ["all.jsonl", "main/test-0.parquet", "main/train-0.parquet"]),
        ("/all.jsonl", ["all.jsonl"]),
        ("/main", ["main/test-0.parquet", "main/train-0.parquet"]),
        ("/main/train-*.parquet", ["main/train-0.parquet"]),
    ],
)
def test_a_hub_data_set_comes_from_its_cache_pinned_to_the_commit(hub: str, path: str, expected: list[str]) -> None:
    files = find_files(f"hf://datasets/owner/name{path}")
    assert [file.name for file in files] == expected
    assert all(file.url == f"hf://datasets/owner/name@{hub}/{file.name}" for file in files)
    assert open_file(files[0], MOST).read() == files[0].name.encode()


def test_a_hub_data_set_that_cannot_be_fetched_says_what_helps(hub: str) -> None:
    with pytest.raises(UserError, match="not in the cache, and HF_HUB_OFFLINE is set") as error:
        find_files("hf://datasets/owner/other", revision="0" * 40)
    assert "local copy" in error.value.hint


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.jsonl", ("jsonl", None)),
        ("x.NDJSON.GZ", ("jsonl", "gzip")),
        ("x.parquet.zst", ("parquet", "zstd")),
        ("a.csv/x", (None, None)),
        ("x.txt.gz.zst", (None, "zstd")),
    ],
)
def test_kind_of_a_name(name: str, kind: tuple[str | None, str | None]) -> None:
    assert kind_of(name) == kind


DATA = b"".join(b"line %d\n" % i for i in range(50_000))
COMPRESSED = {
    "gzip": gzip.compress(DATA),
    "zstd": zstandard.compress(DATA),
    "bz2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
}


@pytest.mark.parametrize("compression", COMPRESSED)
def test_compressed_streams_of_several_members_are_read_whole(tmp_path: Path, compression: str) -> None:
    (tmp_path / "x").write_bytes(COMPRESSED[compression] * 2)
    assert open_file(SourceFile("x", f"file://{tmp_path}/x", "text", compression), MOST).read() == DATA * 2


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated_streams_raise(tmp_path: Path, compression: str, keep: float) -> None:
    data = COMPRESSED[compression]
    (tmp_path / "x").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(OSError, match=r"[Tt]runcated"):
        open_file(SourceFile("x", f"file://{tmp_path}/x", "text", compression), MOST).read()


@pytest.mark.parametrize("compression", COMPRESSED)
def test_what_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, compression: str) -> None:
    pack = {"gzip": gzip.compress, "zstd": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}
    data = pack[compression](bytes(3_000_000))
    (tmp_path / "x").write_bytes(data)
    file = SourceFile("x.txt", f"file://{tmp_path}/x", "text", compression)
    assert len(open_file(file, 3_000_000).read()) == 3_000_000
    assert len(data) * EXPANSION < 1_000_000
    stream, got = open_file(file, 1_000_000), 0
    with pytest.raises(UserError, match=r"bytes unpack to 1,\d{3},\d{3} or more: x\.txt .*corpus\.max_unpacked_bytes"):
        while block := stream.read(1 << 16):
            got += len(block)
    assert got <= 1_000_000 + (1 << 20)


def test_what_is_large_but_not_much_larger_than_its_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(COMPRESSED["gzip"])
    assert open_file(SourceFile("x", f"file://{tmp_path}/x", "text", "gzip"), 1000).read() == DATA


def test_a_zstd_window_that_is_too_long_says_what_helps(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # of a stream: the window stays
    (tmp_path / "x.txt.zst").write_bytes(compressor.compress(b"some text") + compressor.flush())
    (file,) = find_files(str(tmp_path / "x.txt.zst"))
    with pytest.raises(UserError, match=r"zstd --long.*compress it again without"), source_errors(file.name):
        open_file(file, MOST).read()


def test_zeros_may_stand_between_two_xz_streams(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(COMPRESSED["xz"] + bytes(8) + COMPRESSED["xz"])
    assert open_file(SourceFile("x", f"file://{tmp_path}/x", "text", "xz"), MOST).read() == DATA * 2


# ---------------------------------------------------------------------------------------- what is left out


def test_a_folder_of_which_most_would_be_left_out_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.docx", "b.docx", "notes.md", "README.md", "LICENSE")
    with pytest.raises(UserError, match="2 of 3 files of the source would be left out") as error:
        find_files(str(tmp_path))
    assert "it holds 2 .docx, 1 .md" in error.value.hint
    assert [file.name for file in find_files(str(tmp_path), include=["*.md"])] == ["notes.md"]
    (tmp_path / "notes.md").write_text("much more text than in the others")
    assert names(tmp_path) == ["notes.md"]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.py", "_b.py", ".git/config", "c.md", "README")
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16"))
    found = find_files(str(tmp_path), "text", exclude=["c.*"])
    assert [file.name for file in found] == ["README", "_b.py", "a.py", "utf16.txt"]
    said = capsys.readouterr().err
    for line in ("left out, hidden: .git/config", "left out, binary: x.bin", "left out, in corpus.exclude: c.md"):
        assert line in said


# ------------------------------------------------------------------------------------------------ archives


def zip_of(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.txt", data)
    return path


def test_an_archive_in_a_folder_is_read_like_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    zip_of(tmp_path / "b.zip", one=b"1", two=b"2")
    assert names(tmp_path) == ["a.jsonl", "b.zip/one.txt", "b.zip/two.txt"]
    assert names(f"zip://t*.txt::{tmp_path}/b.zip") == ["b.zip/two.txt"]
    with pytest.raises(UserError, match="matches no member"):
        find_files(f"zip://*.csv::{tmp_path}/b.zip")


def test_an_archive_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    for data in (b"old", b"newer"):
        (file,) = find_files(str(zip_of(tmp_path / "x.zip", one=data)))
        assert open_file(file, MOST).read() == data


@pytest.mark.parametrize("pack", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_an_error(tmp_path: Path, pack: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", pack) as archive:
        archive.writestr("one.txt", DATA)
        at = archive.infolist()[0].header_offset + 200
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[at] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    (file,) = find_files(str(tmp_path / "x.zip"))
    with pytest.raises(UserError, match=r"source cannot be read: x\.zip/one\.txt"), source_errors(file.name):
        open_file(file, MOST).read()


def test_a_member_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.sources.archives.MOST", 1_000_000)
    (file,) = find_files(str(zip_of(tmp_path / "x.zip", one=bytes(3_000_000))))
    with pytest.raises(UserError, match=r"unpack to 3,000,000 or more: x\.zip/one\.txt"):
        open_file(file, MOST)
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        about = tarfile.TarInfo("one.txt")
        about.size = 3_000_000
        archive.addfile(about, io.BytesIO(bytes(3_000_000)))
    with pytest.raises(UserError, match=r"unpack to 1,\d+,\d+ or more: x\.tgz"):
        find_files(str(tmp_path / "x.tgz"))


def test_members_of_a_tar_are_read_by_several_threads(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as archive:
        for n in range(20):
            about = tarfile.TarInfo(f"{n:02d}.txt")
            about.size = len(DATA)
            archive.addfile(about, io.BytesIO(DATA[n:] + DATA[:n]))
        archive.addfile(tarfile.TarInfo("../../etc/passwd.txt"))
    files = find_files(str(tmp_path / "x.tar.xz"))
    assert files[0].name == "x.tar.xz/00.txt" and len(files) == 20  # a name that leads out is hidden, as `.` begins it
    with ThreadPoolExecutor(4) as pool:
        for n, data in enumerate(pool.map(lambda file: open_file(file, MOST).read(), files)):
            assert data == DATA[n:] + DATA[:n]


def test_a_chain_of_file_systems_is_a_source() -> None:
    fsspec.filesystem("memory").pipe({"/chained/a.jsonl": b"one"})
    (file,) = find_files("simplecache::memory://chained/*.jsonl")
    assert (file.name, file.url) == ("a.jsonl", "simplecache::memory://chained/a.jsonl")
    assert open_file(file, MOST).read() == b"one"


def test_who_names_files_and_their_format_reads_what_has_no_known_extension(tmp_path: Path) -> None:
    """Parts of a job have names without an end, and notebooks one of their own."""
    for name in ("part-00000", "part-00001", "a.ipynb", "b.csv", "_SUCCESS"):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in find_files(str(tmp_path), "jsonl", include=["part-*"])] == [
        "part-00000",
        "part-00001",
    ]
    assert [file.name for file in find_files(str(tmp_path), "json", include=["*.ipynb", "*.csv"])] == ["a.ipynb"]
    with pytest.raises(UserError, match="no json files in the source") as error:
        find_files(str(tmp_path), "json")
    assert error.value.hint and error.value.hint.endswith("corpus.include: ['part-*'] with corpus.format: json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
def test_a_packed_file_by_another_name_is_told_as_such(tmp_path: Path, name: str) -> None:
    """Its bytes are no text in another encoding, as which they could be read without an error."""
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "one"}\n' * 3))
    for encoding in ("utf-8", "latin-1"):
        with pytest.raises(UserError, match="the file is gzip, by its first bytes") as error:
            run(tmp_path / "work", tmp_path / name, encoding=encoding)
        assert error.value.hint == "let its name end in .gz, or leave it out by corpus.exclude"
