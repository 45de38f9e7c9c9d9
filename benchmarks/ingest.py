"""Compare ingest with polars at the same work: read JSON lines, drop exact copies, write Parquet.

    python -m benchmarks.ingest [--megabytes 200] [--repeats 3] [--threads 1]

The source has documents of about 2.6 kB in paragraphs, of which 3 % are exact copies under another id and one in five
has characters beyond ASCII. Ours is all of `ingest` without near-duplicates, run in one process: the pass `read`, which
also checks the source's bytes against their hashes, renders a template, normalizes to NFC, hashes every text and keeps
rejected records; `assign`, which also splits off 20 validation documents; and `ingest`, which also hashes what models
will read. Beside them stand what the driver does: it scans and hashes the source, once, and writes the records. Polars
reads the file, keeps the first row of each text in order, and writes Parquet of the same compression.

Both sides run by turns, each in a process of its own that has done the same on a small file before. Seconds are of
processor time, of all threads. Whether both keep the same documents in the same order is checked. The parts of ours
are measured one by one on the same documents in a process of its own; what they leave of the whole is `rest`.
Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.executor import thread_settings

ResultT = TypeVar("ResultT")

BARS = {"of_polars_time": 1.2}
COPIES = 0.03
PARAGRAPH, PARAGRAPHS = 60, 6
"""Words of a paragraph, and paragraphs of a document."""


def write_source(path: Path, size: int) -> int:
    """Write documents of about so many bytes together; return their number."""
    rng = random.Random(0)
    words = [
        f"{a}{b}{c}{d}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst" for d in ("er", "a", "ing", "ments")
    ]
    texts, written = list[str](), 0
    with path.open("wb") as file:
        while written < size:
            drawn = rng.choices(words, k=PARAGRAPH * PARAGRAPHS)
            paragraphs = (drawn[begin : begin + PARAGRAPH] for begin in range(0, len(drawn), PARAGRAPH))
            text = f"No. {len(texts)}: " + "\n\n".join(map(" ".join, paragraphs)) + ' "end".\n'
            if len(texts) % 5 == 0:
                text = text.replace("ments ", "ménts – ", 5)
            if texts and rng.random() < COPIES:
                text = rng.choice(texts)
            texts.append(text)
            row = {"id": len(texts), "text": text}
            written += file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return len(texts)


# ------------------------------------------------------------------------------------------------------- sides


class Passes:
    """An executor that calls everything in this process, and adds up the processor time of each pass."""

    devices = ("CPU",)

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
        """Yield the results."""
        self.seconds.append(0.0)
        for item in items:
            start = time.process_time()
            done = function(item)
            self.seconds[-1] += time.process_time() - start
            yield done


def ours(source: Path, work: Path) -> tuple[Path, dict[str, float]]:
    """Run ingest; return the folder with the documents, and processor time by pass."""
    from stages.ingest import ingest

    passes, start = Passes(), time.process_time()
    record = ingest(manifest(), source=str(source), work=work, executor=passes)
    whole = time.process_time() - start
    seconds = dict(zip(("read", "assign", "ingest"), passes.seconds, strict=True))
    passed = sum(passes.seconds)
    return record.directory, seconds | {"passes": passed, "driver": whole - passed, "with_driver": whole}


def manifest() -> Any:
    """Return the manifest of ours."""
    from pipeline.config.manifest import Manifest

    about = {"source": "unused", "near_duplicates": None, "validation": {"documents": 20}}
    return Manifest.model_validate(
        {"name": "x", "corpus": about, "proxy": {"train": {}}, "materialize": {"policy_tokenizer": "unused"}}
    )


def polars(source: Path, out: Path) -> tuple[Path, dict[str, float]]:
    """Do the same with polars."""
    import polars as pl

    out.mkdir()
    start = time.process_time()
    rows = pl.read_ndjson(source)
    read = time.process_time()
    kept = rows.unique("text", keep="first", maintain_order=True)
    unique = time.process_time()
    kept.write_parquet(out / "documents-0.parquet", compression="zstd", compression_level=1)
    end = time.process_time()
    return out, {"read": read - start, "unique": unique - read, "write": end - unique, "passes": end - start}


def digest(folder: Path) -> str:
    """Return a hash of the texts in the tables `documents` of a folder, in order."""
    import pyarrow.parquet as pq

    texts = hashlib.sha256()
    for path in sorted(folder.glob("documents-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            for text in batch["text"]:
                texts.update(hashlib.sha256(text.as_py().encode()).digest())
    return texts.hexdigest()


# ------------------------------------------------------------------------------------------------------- parts


def parts(source: Path, work: Path) -> dict[str, float]:
    """Return the processor time of each part of ours, one by one on all documents."""
    import pyarrow as pa

    from pipeline.core.artifact import InputFile
    from pipeline.core.parquet import ROW_GROUP, count_rows, parquet_writer, read_rows_in_turn, read_table
    from pipeline.corpus.documents import count_control_characters, doc_id, text_digest, to_json
    from pipeline.corpus.files import corpus_files
    from pipeline.corpus.readers.encodings import DecodedFile
    from pipeline.corpus.readers.json_values import parse_json_object
    from pipeline.corpus.readers.text import lines_of
    from pipeline.corpus.scan import SLICE_BYTES, scan
    from pipeline.corpus.template import Template

    corpus, seconds = manifest().corpus, dict[str, float]()

    def timed(name: str, work: Callable[[], ResultT]) -> ResultT:
        start = time.process_time()
        result = work()
        seconds[name] = time.process_time() - start
        return result

    def lines(of: Iterable[Any]) -> Iterator[bytes]:
        for part in of:
            with DecodedFile(part.file, corpus, inside=part.start > 0) as text:
                yield from (piece.data for piece in lines_of(text, part))

    def tables(folder: Path) -> list[InputFile]:
        return [InputFile(path) for path in sorted(folder.rglob("documents-*.parquet"))]

    def shards(of: InputFile) -> Iterator[pa.Table]:
        for begin in range(0, count_rows(of), corpus.shard_documents):
            yield read_rows_in_turn(of, begin, begin + corpus.shard_documents)

    def write(name: str, table: pa.Table) -> None:
        with parquet_writer(work / f"{name}.parquet", table.schema) as writer:
            writer.write_table(table, row_group_size=ROW_GROUP)

    (file,) = corpus_files(corpus, str(source))
    slices = scan(file, corpus, SLICE_BYTES).slices
    raw = timed("read lines, check hashes of blocks", lambda: list(lines(slices)))
    values = timed("parse JSON", lambda: [parse_json_object(line) for line in raw])
    template = Template.parse(corpus.text)
    texts = timed("template with NFC", lambda: [template.render(row)[0] for row in values])
    timed("of it, NFC alone", lambda: [unicodedata.normalize("NFC", row["text"]) for row in values])
    timed("hash texts", lambda: [doc_id(text) for text in texts])
    timed("metadata as JSON", lambda: [to_json({"id": row["id"]}) for row in values])

    made, pass_seconds = ours(source, work / "made")
    candidates = tables(work / "made" / "read")
    timed("read candidates, a shard at a time", lambda: [rows for of in candidates for rows in shards(of)])
    found = pa.concat_tables(map(read_table, candidates))
    timed("write candidates", lambda: write("candidates", found))
    seconds["assign: duplicates and split"] = pass_seconds["assign"]
    documents = pa.concat_tables(map(read_table, tables(made)))
    timed("digest of what models read", lambda: text_digest(documents))
    timed("count control characters", lambda: count_control_characters(documents["text"]))
    timed("write documents", lambda: write("documents", documents))
    apart = sum(seconds.values()) - seconds["of it, NFC alone"]
    return seconds | {"rest": pass_seconds["passes"] - apart}


# -------------------------------------------------------------------------------------------------------- main

SIDES: dict[str, Callable[[Path, Path], tuple[Path, dict[str, float]]]] = {"ours": ours, "polars": polars}


def run_side(side: str, source: Path, small: Path, folder: Path) -> dict[str, Any]:
    """Run one side in this process after a small source, which imports what it needs."""
    if side == "parts":
        ours(small, folder / "small")
        return {"seconds": parts(source, folder)}
    SIDES[side](small, folder / "small")
    made, seconds = SIDES[side](source, folder / "whole")
    return {"seconds": seconds, "digest": digest(made)}


def start_side(side: str, source: Path, small: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; return what it prints."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.ingest", "--side", side, *map(str, (source, small, folder))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | thread_settings(threads))
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(folder)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each of the seconds."""
    return {name: round(statistics.median(r["seconds"][name] for r in runs), 3) for name in runs[0]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (1)")
    parser.add_argument("--folder", type=Path, help="where sources and tables go; a temporary folder by default")
    parser.add_argument("--side", nargs=4, metavar=("SIDE", "SOURCE", "SMALL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side[0], *map(Path, options.side[1:]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source, small = folder / "source.jsonl", folder / "small.jsonl"
        documents = write_source(source, round(options.megabytes * 1e6))
        write_source(small, 300_000)
        size, runs = source.stat().st_size, dict[str, list[dict[str, Any]]]()
        for turn in range(options.repeats):
            for side in SIDES:
                found = start_side(side, source, small, folder / f"{side}-{turn}", options.threads)
                runs.setdefault(side, []).append(found)
        measured = start_side("parts", source, small, folder / "parts", options.threads)
    us, them = (medians(runs[side]) for side in SIDES)
    same = len({run["digest"] for side in runs.values() for run in side}) == 1
    ratio = us["passes"] / them["passes"]
    report = {
        "documents": documents,
        "source_bytes": size,
        "threads": options.threads,
        "seconds": {"ours": us, "polars": them},
        "ratio": round(ratio, 3),
        "ratio_with_driver": round(us["with_driver"] / them["passes"], 3),
        "parts": medians([measured]),
        "bars": BARS,
        "holds": {"same_documents": same, "of_polars_time": ratio <= BARS["of_polars_time"]},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
