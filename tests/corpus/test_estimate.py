"""What a part of a corpus says of the whole: exact where all of it was read, near where it was not."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.corpus import CorpusConfig, ValidationConfig
from pipeline.config.errors import UserError
from pipeline.corpus.dedup.assignment import is_sampled
from pipeline.corpus.estimate import Estimate, estimate, sample
from pipeline.corpus.files import corpus_files
from pipeline.corpus.plan import count_read_shards, read_shards
from pipeline.corpus.scan import scan
from pipeline.corpus.sources.finding import find_files
from tests.toys import write_jsonl

ROWS = [
    {
        "text": f"record {n} "
        + " ".join(random.Random(n).choices(["apple", "pear", "fig"], k=random.Random(n).randrange(5, 60)))
    }
    for n in range(4000)
]


def write(folder: Path, format: str, rows: list[dict[str, str]]) -> None:
    """The rows in two files of unequal size."""
    for name, part in (("a", rows[: len(rows) // 4]), ("b", rows[len(rows) // 4 :])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        if format == "jsonl":
            (folder / f"{name}.jsonl").write_text(lines)
        elif format == "jsonl.gz":
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        elif format == "parquet":
            pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet", row_group_size=100)
        elif format == "csv":
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([["text"], *([row["text"]] for row in part)])
        else:
            (folder / f"{name}.txt").write_text("".join(row["text"] + "\n" for row in part))


def look(folder: Path, read_bytes: int) -> Estimate:
    config = CorpusConfig(source=str(folder), document_break="line")
    return estimate(find_files(config.source), config, read_bytes=read_bytes)


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "parquet", "csv", "txt"])
def test_a_part_says_about_how_many_there_are(tmp_path: Path, format: str) -> None:
    write(tmp_path, format, ROWS)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    whole, part = look(tmp_path, 1 << 30), look(tmp_path, size // 4)
    assert (whole.records, whole.read, whole.complete, whole.error) == (4000.0, 4000, True, 0.0)
    assert {row["text"] for row in whole.documents} == {row["text"] for row in ROWS}
    assert not part.complete
    assert part.read < 3000
    assert part.bytes == whole.bytes == size
    assert abs(part.records - 4000) < 4000 * max(0.05, 3 * part.error), part.records
    assert {row["text"] for row in part.documents} <= {row["text"] for row in whole.documents}


def test_what_cannot_be_used_and_what_repeats_is_no_document(tmp_path: Path) -> None:
    rows = [
        *({"text": f"text {n}"} for n in range(30)),
        *({"text": "again"} for _ in range(10)),
        *({"text": " "} for _ in range(10)),
    ]
    write(tmp_path, "jsonl", rows)
    found = look(tmp_path, 1 << 20)
    assert (found.records, found.repeats, len(found.documents), found.document_count) == (50.0, 9, 31, 31.0)
    with pytest.raises(UserError, match="no record of the corpus can be used"):
        write(tmp_path, "jsonl", [{"text": ""}] * 8)
        look(tmp_path, 1 << 20)


def test_a_sampled_corpus_is_as_large_as_its_sample(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", [{"text": f"text {n}"} for n in range(200)])
    files = find_files(str(tmp_path))
    whole, half = (estimate(files, CorpusConfig(source=str(tmp_path), sample=share)) for share in (None, 0.5))
    kept = [row["doc_id"] for row in whole.documents if is_sampled(row["doc_id"], 0.5, 0)]
    assert [row["doc_id"] for row in half.documents] == kept and half.document_count == len(kept) < 200


def test_of_several_sources_as_large_a_share_is_drawn_of_each(tmp_path: Path) -> None:
    """A large one of which a part is read, and a small one that is read whole; ten texts are in both."""
    large, small = ROWS[:3600], [{"body": row["text"]} for row in ROWS[3590:]]
    for name, rows in (("large", large), ("small", small)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", rows)
    sources = [
        {"name": name, "source": str(tmp_path / name), "text": f"{{{column}}}"}
        for name, column in (("large", "text"), ("small", "body"))
    ]
    config = CorpusConfig.model_validate({"sources": sources})
    whole, part = (estimate(corpus_files(config), config, read_bytes=size) for size in (1 << 30, 160_000))
    assert (whole.records, whole.document_count, whole.complete) == (4010.0, 4000, True)
    assert {row["text"] for row in whole.documents} == {row["text"] for row in ROWS}
    assert not part.complete and 0 < part.error < 0.2
    assert abs(part.document_count - 4010) < 3 * part.error * 4010
    of_small = [row for row in part.documents if json.loads(row["meta"])["corpus"] == "small"]
    assert {row["source_file"] for row in of_small} == {"small/rows.jsonl"}
    assert abs(len(of_small) / len(part.documents) - 410 / part.document_count) < 0.01


def test_a_sample_is_split_as_the_corpus_is() -> None:
    documents = [{"doc_id": str(n), "held_out": n % 4 == 0} for n in range(400)]
    splits = {
        name: sum(row["split"] == "validation" for row in sample(documents, rule, 4000, 100))
        for name, rule in (
            ("fraction", ValidationConfig(fraction=0.1)),
            ("documents", ValidationConfig(documents=200)),
            ("column", ValidationConfig(column="split")),
        )
    }
    assert splits["fraction"] == 10
    assert splits["documents"] == 5  # 200 of 4,000 are one in twenty
    assert 15 <= splits["column"] <= 35
    assert all(
        (row["split"] == "validation") == row["held_out"]
        for row in sample(documents, ValidationConfig(column="split"), 400, 400)
    )
    assert len({row["doc_id"] for row in sample(documents, ValidationConfig(fraction=0.1), 400, 400)}) == 400


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ([1] * 2500, 3),  # 1,000 files a shard, or 1,000 bytes
        ([400, 400, 400], 2),
        ([5000], 5),
        ([10, 5000, 10], 7),
    ],
)
def test_the_shards_in_which_files_are_read_are_those_of_the_run(tmp_path: Path, sizes: list[int], shards: int) -> None:
    for n, size in enumerate(sizes):
        (tmp_path / f"{n:04d}.jsonl").write_bytes(b'{"a": 1}\n' * (size // 10) + b"\n" * (size - 9 * (size // 10)))
    config = CorpusConfig(source=str(tmp_path))
    files = corpus_files(config)
    assert count_read_shards(files, sizes, config, 1000) == shards
    assert len(read_shards([scan(file, config, 1000) for file in files], 1000)) == shards
