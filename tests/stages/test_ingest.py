"""Ingest on real files: what becomes of every kind of record, when it stops, and what a kill leaves behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import content_hash
from pipeline.core.executor import LocalExecutor
from pipeline.corpus.documents import DOCUMENTS, doc_id
from pipeline.corpus.quarantine import QUARANTINE
from stages.ingest import ingest
from tests.corpus.corpora import Ingested, jsonl, manifest, rows, run

DEEP = b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
HUGE = b'{"text": "' + b"x" * 5_000_000 + b'"}'

REJECTED: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"text": oops}', "not_json"),
    "cut off": (b'{"text": "on', "not_json"),
    "nested too deeply": (DEEP, "not_json"),
    "no object": (b'["text"]', "not_an_object"),
    "the same key twice": (b'{"text": "one", "text": "two"}', "duplicate_key"),
    "not UTF-8 in the middle": (b'{"text": "caf\xe9 au lait"}', "not_utf8"),
    "null": (b'{"text": null}', "null_column"),
    "absent": (b'{"txet": "x"}', "missing_column"),
    "a list": (b'{"text": [1]}', "wrong_type"),
    "an object": (b'{"text": {"x": 1}}', "wrong_type"),
    "empty": (b'{"text": ""}', "empty"),
    "white space": (b'{"text": " \\n\\u2003"}', "empty"),
    "short": (b'{"text": "x"}', "too_short"),
    "5 MB long": (HUGE, "too_long"),
    "a lone surrogate": (b'{"text": "a\\ud83d"}', "lone_surrogate"),
    "U+0000": (b'{"text": "a\\u0000b"}', "nul_character"),
}


def test_every_record_that_cannot_be_used_is_kept_with_its_bytes_place_and_reason(tmp_path: Path) -> None:
    lines = [line for raw, _ in REJECTED.values() for line in (raw, b'{"text": "good %d"}' % len(raw))]
    path = jsonl(tmp_path / "in/corpus.jsonl", lines)
    result = run(tmp_path / "work", path, min_document_bytes=2)

    data = path.read_bytes()
    assert [(row["raw"].rstrip(b"\n"), row["reason"]) for row in result.quarantine] == list(REJECTED.values())
    for row in result.quarantine:
        assert row["source_file"] == "corpus.jsonl"
        assert data.split(b"\n")[row["source_row"]] == row["raw"].rstrip(b"\n")
        offset = int(row["detail"].split(":")[0].removeprefix("byte "))
        assert data[offset:].startswith(row["raw"])
    assert len(result.documents) == len({len(raw) for raw, _ in REJECTED.values()})


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"text": 7}', "7"),
        (b'{"text": 8.0}', "8.0"),
        (b'{"text": "form\\ffeed \\u0001\\u0015\\ttab\\r"}', "form\ffeed \x01\x15\ttab\r"),
        ('{"text": "next\u0085line\u2028separator"}'.encode(), "next\u0085line\u2028separator"),
        (b'{"text": "crlf"}\r', "crlf"),
        (b'{"text": "cafe\\u0301"}', "café"),
        ('{"text": "数学🙂"}'.encode(), "数学🙂"),
    ],
)
def test_what_is_odd_and_can_be_used(tmp_path: Path, raw: bytes, text: str) -> None:
    result = run(tmp_path / "work", jsonl(tmp_path / "x.jsonl", [b'\xef\xbb\xbf{"text": "first"}', raw]))
    assert result.texts == ["first", text]
    assert result.documents[1]["doc_id"] == doc_id(text)
    assert result.documents[1]["source_row"] == 1


def test_tables_have_the_schemas_they_promise(tmp_path: Path) -> None:
    record = run(tmp_path / "work", jsonl(tmp_path / "x.jsonl", [{"text": "one"}, b"oops"])).record
    for table, schema in (("documents", DOCUMENTS), ("quarantine", QUARANTINE)):
        assert pq.read_schema(record.files(table)[0].path).equals(schema, check_metadata=False)


# ------------------------------------------------------------------------------- every format, every packing


RECORDS = [{"question": f"What is {i}?", "answer": f"No. {i} é"} for i in range(7)]
CSV = b"question,answer\r\n" + b"".join(f'"{r["question"]}",{r["answer"]}\r\n'.encode() for r in RECORDS)
TEXT = "\n\n".join(f"{r['question']}\n{r['answer']}" for r in RECORDS).encode()


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink, row_group_size=3)
    return bytes(sink.getvalue())


FORMATS = {
    "jsonl": b"".join(json.dumps(r).encode() + b"\n" for r in RECORDS),
    "json": json.dumps(RECORDS, indent=2).encode(),
    "csv": CSV,
    "parquet": parquet_bytes(),
    "txt": TEXT,
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format", FORMATS)
def test_all_formats_give_the_same_documents(tmp_path: Path, format: str, packing: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    (tmp_path / f"x.{format}{packing}").write_bytes(pack(FORMATS[format]))
    template = "{text}" if format == "txt" else "{question}\n{answer}"
    result = run(tmp_path / "work", tmp_path / f"x.{format}{packing}", text=template, document_bytes=1)
    assert result.texts == [f"{r['question']}\n{r['answer']}" for r in RECORDS]
    assert [row["source_row"] for row in result.documents] == list(range(7))
    assert {row["source_file"] for row in result.documents} == {f"x.{format}{packing}"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_truncated_archive_is_an_error(tmp_path: Path, format: str, packing: str) -> None:
    noise = random.Random(0).randbytes(20_000).hex().encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    packed = pack(FORMATS[format] + noise)
    (tmp_path / f"x.{format}{packing}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=f"cannot be read: x.{format}{packing}"):
        run(tmp_path / "work", tmp_path / f"x.{format}{packing}", text="{text}")


def test_folders_globs_and_urls_keep_names_relative_to_their_root(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/b/2.jsonl", [{"text": "three"}])
    jsonl(tmp_path / "in/a/1.jsonl", [{"text": "one"}, {"text": "two"}])
    fsspec.filesystem("memory").pipe("/in/a/1.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    fsspec.filesystem("memory").pipe("/in/b/2.jsonl", b'{"text": "three"}\n')
    results = [
        run(tmp_path / "work", source)
        for source in (tmp_path / "in", tmp_path / "in/*/*.jsonl", "memory://in", "memory://in/*/*.jsonl")
    ]
    for result in results:
        origins = [(row["source_file"], row["source_row"]) for row in result.documents]
        assert origins == [("a/1.jsonl", 0), ("a/1.jsonl", 1), ("b/2.jsonl", 0)]
    assert len({result.record.directory for result in results}) == 1  # the same content is the same artifact


# ------------------------------------------------------------------------------------- duplicates and split


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_columns_that_come_late_are_null_first_or_change_their_kind_are_kept(tmp_path: Path, format: str) -> None:
    """What breaks a schema that is inferred from the first record (datatrove#330, #503)."""
    extras: list[Any] = [None, None, "a", "b"] if format == "parquet" else [None, 1, "a", {"b": [None, 2.5]}]
    lines = [{"text": f"text {n}", "extra": extra} for n, extra in enumerate(extras)]
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), tmp_path / "x.parquet", row_group_size=1)
    else:
        lines += [{"text": "text 4"}, {"text": "text 5", "late": True, "extra": 0}]
        jsonl(tmp_path / "x.jsonl", lines)
    result = run(tmp_path / "work", tmp_path / f"x.{format}", validation={"documents": 0})
    kept = [{"text": row["text"]} | json.loads(row["meta"]) for row in result.documents]
    assert kept == lines and not result.reasons


def test_the_first_of_equal_texts_stays_wherever_it_comes_from(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/1.jsonl", [{"text": "a", "id": 1}, {"text": "cafe\u0301", "id": 2}, {"text": "a", "id": 3}])
    jsonl(tmp_path / "in/2.jsonl", [{"text": "caf\u00e9", "id": 4}, {"text": "b", "id": 5}])
    result = run(tmp_path / "work", tmp_path / "in", shard_documents=2)
    assert [(row["text"], json.loads(row["meta"])["id"]) for row in result.documents] == [
        ("a", 1),
        ("café", 2),
        ("b", 5),
    ]
    assert [done.counters["dropped.duplicate"] for done in result.record.completions()] == [2, 0]
    assert result.record.counters == {
        "records": 5,
        "documents": 3,
        "train": 3,
        "validation": 0,
        "dropped.duplicate": 2,
        "dropped.near_duplicate_of_validation": 0,
        "control_characters": 0,
    }


def test_validation_is_a_number_a_fraction_or_a_column(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "x.jsonl", [{"text": f"{i}", "split": "test" if i % 10 == 0 else "train"} for i in range(50)]
    )

    def held_out(**rule: Any) -> set[str]:
        documents = run(tmp_path / "work", path, validation=rule).documents
        return {row["text"] for row in documents if row["split"] == "validation"}

    assert len(held_out(documents=7)) == 7
    assert 0 < len(held_out(fraction=0.3)) < 30
    assert held_out(column="split", value="test") == {"0", "10", "20", "30", "40"}


def test_a_sample_keeps_a_share_of_the_documents_whatever_their_order_and_counts_the_others(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(400)] + ["text 0"]

    def kept(share: float | None, order: int = 1, **corpus: Any) -> Ingested:
        path = jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts[::order]])
        return run(tmp_path / "work", path, sample=share, shard_documents=30, **corpus)

    tenth, half, whole = kept(0.1), kept(0.5), kept(1.0)
    assert set(tenth.texts) < set(half.texts) < set(whole.texts) == set(texts)
    assert 20 <= len(tenth.texts) <= 60 and 160 <= len(half.texts) <= 240  # 40 ± 6 and 200 ± 10 are the standard errors
    assert set(kept(0.5, order=-1).texts) == set(half.texts) != set(kept(0.5, seed=1).texts)
    counts = half.record.counters
    assert counts["dropped.not_sampled"] == 400 - len(half.texts) and counts["dropped.duplicate"] == 1
    assert counts["records"] == counts["documents"] + counts["dropped.not_sampled"] + counts["dropped.duplicate"] == 401
    fifth = kept(0.5, validation={"documents": 40}).documents
    assert sum(row["split"] == "validation" for row in fifth) == 40, "the held-out documents come from the sample"
    assert len({kept(share).record.fingerprint for share in (None, 1.0, 0.5)}) == 3


# ----------------------------------------------------------------------------------------- counts that add up

GOOD = st.builds(lambda text: json.dumps({"text": text, "n": 1}).encode(), st.text("aé\u0301\u0085 \f", max_size=4))
BAD = st.sampled_from([raw for raw, _ in REJECTED.values() if len(raw) < 1000])


@given(st.lists(GOOD | BAD, min_size=1, max_size=30), st.integers(1, 200), st.integers(1, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_record_is_a_document_a_duplicate_or_in_quarantine(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], slice_bytes: int, shard_documents: int
) -> None:
    folder = tmp_path_factory.mktemp("ingest")
    lines = [b'{"text": "one that stays"}', *lines]
    path = jsonl(folder / "x.jsonl", lines)
    result = run(folder / "work", path, slice_bytes=slice_bytes, shard_documents=shard_documents, text="<{text}>")
    counters = result.record.counters
    quarantined = sum(count for name, count in counters.items() if name.startswith("quarantined."))
    assert counters["records"] == len(lines)
    assert counters["documents"] + counters["dropped.duplicate"] + quarantined == len(lines)
    assert counters["train"] + counters["validation"] == counters["documents"] == len(result.documents)
    assert quarantined == len(result.quarantine)

    used = {row["source_row"] for row in result.documents + result.quarantine}
    seen = {row["text"] for row in result.documents}
    for row, line in enumerate(lines):
        if row not in used:  # the duplicates
            assert unicodedata.normalize("NFC", f"<{json.loads(line)['text']}>") in seen
    assert len(seen) == len(result.documents)
    for document in result.documents:
        column = unicodedata.normalize("NFC", str(json.loads(lines[document["source_row"]])["text"]))
        (field,) = document["fields"]
        assert document["text"].encode()[field["start"] : field["end"]].decode() == column
    sizes = [done.counters["documents"] for done in result.record.completions()]
    assert sizes[:-1] == [shard_documents] * (len(sizes) - 1) and 0 < sizes[-1] <= shard_documents


@pytest.mark.parametrize("slice_bytes", [1, 100, 3000])
def test_documents_do_not_depend_on_how_the_source_was_sliced(tmp_path: Path, slice_bytes: int) -> None:
    lines = [json.dumps({"text": f"text {i % 70}"}).encode() if i % 9 else b"oops" for i in range(100)]
    path = jsonl(tmp_path / "x.jsonl", lines)
    options: dict[str, Any] = {"shard_documents": 11, "validation": {"documents": 5}}
    whole = run(tmp_path / "whole", path, **options)
    sliced = run(tmp_path / "sliced", path, slice_bytes=slice_bytes, **options)
    assert (tmp_path / "sliced/read/current").exists()
    assert hashes(sliced, "documents") == hashes(whole, "documents")  # byte for byte
    assert sliced.quarantine == whole.quarantine


def hashes(result: Ingested, table: str) -> list[str]:
    return [done.files[table].sha256 for done in result.record.completions()]


# ------------------------------------------------------------------------------------------------ when it stops


def test_the_sha256_of_the_manifest_is_checked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "x"}])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(tmp_path / "work", path, sha256=found).texts == ["x"]
    with pytest.raises(UserError, match=r"wrong sha256: x\.jsonl") as error:
        run(tmp_path / "work", path, sha256="0" * 64)
    assert found in error.value.hint and "0" * 64 in error.value.hint
    jsonl(tmp_path / "y.jsonl", [{"text": "y"}])
    with pytest.raises(UserError, match="of one file"):
        run(tmp_path / "work", tmp_path / "*.jsonl", sha256=found)


def test_a_template_that_names_an_absent_column_stops_before_anything_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"problem": "x", "solution": "y"}])
    with pytest.raises(UserError) as error:
        run(tmp_path / "work", path, text="{problem} {soluton}")
    assert str(error.value) == (
        "`corpus.text` names the column `soluton`, which does not exist: x.jsonl (known: solution, problem)"
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet"])
def test_a_later_file_with_other_columns_is_named(tmp_path: Path, format: str) -> None:
    (tmp_path / f"1.{format}").write_bytes(FORMATS[format])
    other = {
        "jsonl": b'{"question": "x"}\n',
        "json": b'[{"question": "x"}]',
        "csv": b"question\nx\n",
    }
    (tmp_path / f"2.{format}").write_bytes(other.get(format, b""))
    if format == "parquet":
        pq.write_table(pa.table({"question": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match=rf"column `answer`, which does not exist: 2\.{format}"):
        run(tmp_path / "work", tmp_path / f"*.{format}", text="{question} {answer}")


def test_a_split_by_an_absent_column_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"`corpus\.validation\.column` names the column `split`"):
        run(tmp_path / "work", path, validation={"column": "split"})


def test_too_much_quarantine_names_the_most_common_reason_and_an_example(tmp_path: Path) -> None:
    lines = [b'{"text": "x%d"}' % i for i in range(6)] + [b"oops", b'{"text": null}', b'{"text": null, "id": 2}']
    path = jsonl(tmp_path / "x.jsonl", lines)
    with pytest.raises(UserError) as error:
        run(tmp_path / "work", path, max_quarantine_fraction=0.3)
    assert error.value.message == "3 of 9 records cannot be used, 2 of them as `null_column`"
    assert error.value.where.startswith("x.jsonl row 7, byte 95: `text` is null: ")
    assert "0.333" in error.value.hint
    result = run(tmp_path / "work", path, max_quarantine_fraction=0.34)  # nothing is read again for this
    assert len(result.texts) == 6 and result.reasons == ["not_json", "null_column", "null_column"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
def test_a_corpus_without_records_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"no records: {name} "):
        run(tmp_path / "work", tmp_path / name)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text\nbody\n".encode("utf-16"), ["the file is utf-16-le, by its first bytes: x.csv"]),
        (b"text\nCaf\xe9\n", ["1 of 1 records cannot be used", "x.csv row 0, byte 5"]),
    ],
)
def test_another_encoding_is_named_with_its_mending(tmp_path: Path, data: bytes, words: list[str]) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"corpus\.encoding: ") as error:
        run(tmp_path / "work", tmp_path / "x.csv")
    assert all(word in str(error.value) for word in words)


def test_a_corpus_with_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": ""}, {"text": None}, {"text": " "}])
    with pytest.raises(UserError, match="3 of 3 records cannot be used, 2 of them as `empty`"):
        run(tmp_path / "work", path)
    path = jsonl(tmp_path / "y.jsonl", [{"text": "x"}, {"text": "y"}])
    with pytest.raises(UserError, match="nothing left to train on"):
        run(tmp_path / "work", path, validation={"documents": 2})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source file not found: .*nowhere\.jsonl"):
        run(tmp_path / "work", tmp_path / "nowhere.jsonl")


# ---------------------------------------------------------------------------------------- identity and resume


def test_where_the_source_lies_is_no_part_of_its_identity_what_it_holds_is(tmp_path: Path) -> None:
    here = jsonl(tmp_path / "here/x.jsonl", [{"text": "x"}])
    there = jsonl(tmp_path / "there/x.jsonl", [{"text": "x"}])
    first = run(tmp_path / "work", here).record
    assert run(tmp_path / "work", there, license="MIT", max_quarantine_fraction=0.5).record.directory == first.directory
    assert len(list((tmp_path / "work/read").glob("*/record.json"))) == 1  # nothing was read again
    jsonl(here, [{"text": "y"}])
    assert run(tmp_path / "work", here).record.directory != first.directory
    assert str(tmp_path) not in json.dumps(rows(first, "documents"))


SCRIPT = """
import os, signal, sys
from pathlib import Path
from stages.ingest import ingest
from tests.corpus.corpora import Here, manifest

taken, last = 0, int(sys.argv[3])

def step(event, arguments):  # called before the operation
    global taken
    if event in ("os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        taken += 1
        if taken == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
corpus = dict(shard_documents=40, validation={"documents": 20}, max_quarantine_fraction=0.5)
ingest(manifest(**corpus), source=sys.argv[1], work=Path(sys.argv[2]), executor=Here(), slice_bytes=4000)
print(taken)
"""
"""Ends by a SIGKILL before its n-th operation on the file system; if n is 0 it prints how many it has done."""


def published(work: Path) -> dict[str, str]:
    """Every published file with its hash; completions without the seconds they took."""
    files = {}
    for path in sorted(work.rglob("*")):
        if path.is_file() and path.suffix in (".parquet", ".json") and "tmp" not in path.parts:
            content = content_hash(path) if path.suffix == ".parquet" else _without_seconds(path)
            files[str(path.relative_to(work))] = content
    return files


def _without_seconds(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if '"seconds"' not in line)


def test_killed_at_any_moment_and_run_again_it_publishes_the_same_bytes(tmp_path: Path, repository: Path) -> None:
    rng = random.Random(0)
    lines = [json.dumps({"text": f"{rng.randint(0, 900)} " * 8}).encode() if i % 7 else b"oops" for i in range(1500)]
    path = jsonl(tmp_path / "in/x.jsonl", lines)

    def start(work: Path, last: int, code: int = 0) -> str:
        command = [sys.executable, "-c", SCRIPT, str(path), str(work), str(last)]
        ended = subprocess.run(command, cwd=repository, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert ended.returncode == code
        return ended.stdout

    def done(work: Path) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in work.glob("*/*/done/*.json")}

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    total, reached = int(start(calm, 0)), []
    for share in (0.02, 0.1, 0.3, 0.5):  # of the operations that a calm run does: the last kill is in `ingest`
        start(killed, int(share * total), code=-signal.SIGKILL)
        reached.append(len(done(killed)))
    assert reached[0] < reached[1] < reached[2] < reached[3] < len(done(calm))
    published_before = done(killed)
    start(killed, 0)
    assert published_before.items() <= done(killed).items()  # what was published is not done again
    assert published(killed) == published(calm)


def test_processes_give_the_same_bytes_as_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": f"text {i}"} for i in range(100)])
    alone = run(tmp_path / "alone", path, shard_documents=30)
    together = ingest(
        manifest(shard_documents=30), source=str(path), work=tmp_path / "together", executor=LocalExecutor(2)
    )
    assert together.content == alone.record.content


@pytest.mark.parametrize("passes", [["ingest"], ["assign", "ingest"]])
def test_a_table_that_was_damaged_between_the_passes_is_named(tmp_path: Path, passes: list[str]) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": f"some text {i} " * 20} for i in range(50)])
    run(tmp_path / "work", path)
    for name in passes:
        shutil.rmtree(tmp_path / "work" / name)
    (table,) = (tmp_path / "work/read").glob("*/documents-*.parquet")
    _flip_silently(table)
    with pytest.raises(IntegrityError, match=table.name):
        run(tmp_path / "work", path)


def _flip_silently(path: Path) -> None:
    """Flip a bit that Parquet readers do not notice unless they verify checksums."""
    good, table = path.read_bytes(), pq.read_table(path)
    for at in range(4, len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with contextlib.suppress(OSError, pa.ArrowException):
            if not pq.read_table(path).equals(table):
                return
    raise AssertionError("every flip was noticed")


# ------------------------------------------------------------------------------------------------- real corpora


def test_omnimath(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "omnimath/omni_math_rule.jsonl"
    result = run(tmp_path, source, text="{problem}\n\n{solution}", validation={"documents": 200})
    assert result.record.counters == {
        "records": 2821,
        "documents": 2815,
        "dropped.duplicate": 5,
        "dropped.near_duplicate_of_validation": 1,  # `\\( N \\)` for `\\(N\\)`
        "train": 2615,
        "validation": 200,
        "control_characters": 30,
    }
    records = [json.loads(line) for line in source.read_bytes().split(b"\n") if line]
    for document in result.documents:  # form feeds, tabs, CRs and all
        record = records[document["source_row"]]
        text = unicodedata.normalize("NFC", f"{record['problem']}\n\n{record['solution']}")
        assert document["text"] == text
        spans = {f["name"]: text.encode()[f["start"] : f["end"]].decode() for f in document["fields"]}
        assert spans == {name: unicodedata.normalize("NFC", record[name]) for name in ("problem", "solution")}
        assert json.loads(document["meta"]).keys() == {"domain", "difficulty", "answer", "source"}


def test_mmlu_pro_keeps_the_next_line_character_inside_a_record(tmp_path: Path, real_data: Path) -> None:
    result = run(tmp_path, real_data / "mmlu-pro/mmlu_pro_test.jsonl", text="{question}")
    assert result.record.counters["records"] == 12_032
    assert not result.quarantine
    questions = [row["text"] for row in result.documents if "\u0085" in row["text"] + row["meta"]]
    assert questions


@pytest.mark.parametrize(
    ("source", "text", "records", "documents"),
    [
        ("gsm8k/t*.jsonl", "{question}\n{answer}", 7473, 7473),
        ("cmath/cmath_dev.jsonl", "{input}\n{golden}", 600, 600),
        ("tinyshakespeare/input.txt", "{text}", 288, 288),
    ],
)
def test_other_real_corpora(
    tmp_path: Path, real_data: Path, source: str, text: str, records: int, documents: int
) -> None:
    result = run(tmp_path, real_data / source, text=text)
    assert (result.record.counters["records"], len(result.documents), result.quarantine) == (records, documents, [])
    if source.endswith(".txt"):
        data = (real_data / source).read_bytes()
        for row in result.documents:
            offset = json.loads(row["meta"])["byte_offset"]
            assert data[offset:].startswith(row["text"].encode())
        assert "".join("".join(result.texts).split()) == "".join(data.decode().split())
        assert max(len(t) for t in result.texts) <= 4096
