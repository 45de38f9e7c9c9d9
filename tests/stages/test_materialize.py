"""The stage `materialize` on published documents and sites."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.sites import SITES
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import SHARDS, SPLITS, boundaries_of
from stages.materialize import VERSION, materialize
from stages.select import select
from tests.selection.tables import documents_of, scores_of
from tests.shards.tokenizers import tokenizer_json, tokenizer_of
from tests.stages.published import InProcess, cut, publish_tables
from tests.toys import byte_level_tokenizer, problems


def manifest(policy_tokenizer: Path | str, **settings: object) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": {"model": "none"},
            "select": {"where": "entropy > 1.0"},
            "materialize": {"policy_tokenizer": str(policy_tokenizer), **settings},
        }
    )


def scored(texts: list[str], proxy: CorpusTokenizer) -> tuple[pa.Table, pa.Table]:
    """Documents, each tenth held out, and scores at the proxy's positions: every third exceeds 1 nat."""
    documents = documents_of(texts, ["validation" if i % 10 == 9 else "train" for i in range(len(texts))])
    ends = [proxy.ends(proxy.encode(text)).tolist() for text in texts]
    entropies = [[None if t < 4 else (t % 3) * 0.75 for t in range(len(e))] for e in ends]
    return documents, scores_of(documents, ends, entropies)


def data_stages(
    work: Path, toy: Manifest, documents: pa.Table, scores: pa.Table, per_shard: int = 15
) -> tuple[Record, Record]:
    """The records of select and materialize."""
    ingested = publish_tables(work, "ingest", [{"documents": table} for table in cut(documents, per_shard)])
    scored = publish_tables(work, "score", [{"scores": table} for table in cut(scores, per_shard)])
    sites = select(toy, ingested, scored, work=work, executor=InProcess())
    return sites, materialize(toy, ingested, scored, sites, work=work, executor=InProcess())


TEXTS = [row["problem"] + "\n" + row["solution"] for row in problems(40)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The proxy's and the policy's: 300 and 400 tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    sizes = {"proxy": 300, "policy": 400}
    proxy, policy = (byte_level_tokenizer(folder / name, TEXTS, size) for name, size in sizes.items())
    return proxy, policy


@pytest.fixture(scope="module")
def done(tokenizers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, Record, Record]:
    proxy, policy = tokenizers
    tables = scored(TEXTS, CorpusTokenizer.load(proxy))
    toy = manifest(policy, max_context_tokens=20, row_group=64)
    return tables[0], *data_stages(tmp_path_factory.mktemp("work"), toy, *tables)


def rows_of(record: Record, split: str) -> list[dict[str, object]]:
    return pa.concat_tables([read_table(file) for file in record.files(split)]).to_pylist()


def test_golden(tmp_path: Path) -> None:
    """Whatever changes the output must raise the stage's VERSION: it is all that tells old output from new."""
    merges = [
        (b"t", b"h"),
        (b"th", b"e"),
        (b"r", b"e"),
        (b" ", b"the"),
        (b"\xe6", b"\x95"),
        (b"a", b"re"),
        (b"d", b" "),
    ]
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(merges))
    toy = manifest(tmp_path, max_context_tokens=20, continuation_tokens=5)
    _, record = data_stages(tmp_path / "work", toy, *scored(TEXTS, tokenizer_of(merges[:3])))
    rows = [
        {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}
        for s in SPLITS
        for row in rows_of(record, s)
    ]
    digest = hashlib.sha256(canonical_json([rows, record.counters]).encode()).hexdigest()[:16]
    assert {VERSION: digest} == {5: "eadbc2493857ef73"}


def test_every_site_is_a_row_or_a_reason(done: tuple[pa.Table, Record, Record]) -> None:
    documents, sites, record = done
    counters = record.counters
    selected = pa.concat_tables([read_table(file) for file in sites.files("sites")])
    assert counters["sites"] == selected.num_rows == sites.counters["kept.train"] + sites.counters["kept.validation"]
    assert counters["dropped.not_a_policy_boundary"] > 0 < counters["context_truncated"]
    texts = dict(zip(documents["doc_id"].to_pylist(), documents["text"].to_pylist(), strict=True))
    splits = dict(zip(documents["doc_id"].to_pylist(), documents["split"].to_pylist(), strict=True))
    by_id = {site["site_id"]: site for site in selected.to_pylist()}
    for split in SPLITS:
        rows = rows_of(record, split)
        assert len(rows) == counters[f"kept.{split}"] > 0
        for row in rows:
            assert {name: row[name] for name in SITES.names} == by_id[row["site_id"]]
            assert splits[row["doc_id"]] == split == row["split"]
            data, at = texts[row["doc_id"]].encode(), row["byte_offset"]
            assert data[:at].endswith(row["context"]) and data[at:].startswith(row["continuation"])
            assert row["context_truncated"] == (len(row["context"]) < at)


def test_metadata_says_where_the_rows_come_from(
    done: tuple[pa.Table, Record, Record], tokenizers: tuple[Path, Path]
) -> None:
    _, sites, record = done
    metadata = pq.read_schema(record.files("train")[0].path).metadata
    assert metadata[b"rpt.fingerprint"].decode() == record.fingerprint
    assert metadata[b"rpt.policy_tokenizer"].decode() == CorpusTokenizer.load(tokenizers[1]).digest
    assert json.loads(metadata[b"rpt.sites"]) == {"fingerprint": sites.fingerprint, "config": sites.config}
    assert json.loads(metadata[b"rpt.scores"])["inputs"] == {"by": "hand"}
    assert metadata[b"rpt.version"].decode() == str(VERSION)


def test_rows_do_not_depend_on_how_the_corpus_is_cut_and_files_not_on_when_they_are_written(
    tokenizers: tuple[Path, Path], tmp_path: Path
) -> None:
    proxy, policy = tokenizers
    tables = scored(TEXTS, CorpusTokenizer.load(proxy))
    records = [data_stages(tmp_path / str(n), manifest(policy), *tables, n)[1] for n in (40, 9)]
    for split in SPLITS:
        assert rows_of(records[0], split) == rows_of(records[1], split)
    again = data_stages(tmp_path / "again", manifest(policy), *tables, 9)[1]
    assert again.content == records[1].content and again.content != records[0].content


def test_a_shard_without_rows_of_a_split_publishes_no_table_for_it(
    done: tuple[pa.Table, Record, Record], tokenizers: tuple[Path, Path], tmp_path: Path
) -> None:
    proxy, policy = tokenizers
    _, record = data_stages(tmp_path, manifest(policy), *scored(TEXTS, CorpusTokenizer.load(proxy)), 5)
    assert [record.file("validation", i) is not None for i in range(8)] == [False, True] * 4
    assert len(ShardReader(record.files("validation"))) == record.counters["kept.validation"]


def test_the_tokenizer_counts_by_what_it_is_not_by_where_it_lies(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    proxy, policy = tokenizers
    tables = scored(TEXTS, CorpusTokenizer.load(proxy))
    moved, other = tmp_path / "moved", tmp_path / "other"
    moved.mkdir()
    os.link(policy / "tokenizer.json", moved / "tokenizer.json")
    byte_level_tokenizer(other, TEXTS, 350)
    first, same, changed = (data_stages(tmp_path / "work", manifest(t), *tables)[1] for t in (policy, moved, other))
    assert first == same and changed.fingerprint != first.fingerprint


def test_other_sites_make_other_shards(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    proxy, policy = tokenizers
    tables = scored(TEXTS, CorpusTokenizer.load(proxy))
    few = manifest(policy)
    more = few.model_copy(update={"select": few.select.model_copy(update={"where": "entropy > 0.5"})})
    records = [data_stages(tmp_path, toy, *tables)[1] for toy in (few, more, few)]
    assert records[0] == records[2]
    assert records[0].counters["kept.train"] < records[1].counters["kept.train"]


def test_no_training_example_left_is_told(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """A policy that has whole lines as tokens has no boundary where the sites are."""
    proxy, _ = tokenizers
    text = "ab" * 64
    policy = byte_level_tokenizer(tmp_path / "policy", [text] * 9, 300)
    documents, scores = scored([text], CorpusTokenizer.load(proxy))
    with pytest.raises(UserError, match=r"no training example is left: .*dropped.not_a_policy_boundary"):
        data_stages(tmp_path / "work", manifest(policy), documents, scores)


def test_a_missing_tokenizer_is_told(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    tables = scored(TEXTS, CorpusTokenizer.load(tokenizers[0]))
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        data_stages(tmp_path, manifest(tmp_path), *tables)


# ----------------------------------------------------------------------------------------------- real data


SPLITS_CHARACTERS = "minimind"  # one character in ten; R1's tokenizer splits two in all of cmath
KEEPS_THEM = "deepseek-r1-distill-qwen"


@pytest.mark.parametrize(("proxy", "policy"), [(SPLITS_CHARACTERS, KEEPS_THEM), (KEEPS_THEM, SPLITS_CHARACTERS)])
def test_chinese(real_data: Path, tmp_path: Path, proxy: str, policy: str) -> None:
    """cmath at one tokenizer's positions, cut for another one's."""
    lines = (real_data / "cmath" / "cmath_dev.jsonl").read_bytes().splitlines()
    texts = list(dict.fromkeys(unicodedata.normalize("NFC", json.loads(line)["input"]) for line in lines))
    tables = scored(texts, CorpusTokenizer.load(real_data / "tokenizers" / proxy))
    folder = real_data / "tokenizers" / policy
    sites, record = data_stages(tmp_path, manifest(folder), *tables, 200)
    counters = record.counters
    assert (sites.counters["dropped.inside_character"] > 1000) == (proxy == SPLITS_CHARACTERS)
    assert counters["dropped.not_a_policy_boundary"] > 100
    assert counters["dropped.policy_tokenizer_not_lossless"] == 0
    assert counters["kept.train"] > 1000

    tokenizer, rows = CorpusTokenizer.load(folder), rows_of(record, "train")
    documents = dict(zip(tables[0]["doc_id"].to_pylist(), tables[0]["text"].to_pylist(), strict=True))
    for row in rows[::50]:
        text = documents[row["doc_id"]]
        ids = tokenizer.encode(text)
        starts = np.concatenate([[0], tokenizer.ends(ids)])[:-1]
        (token,) = np.flatnonzero(starts == row["byte_offset"])
        following = ids[token : token + 16]
        assert row["context"] == text.encode()[: row["byte_offset"]]
        assert row["continuation"] == tokenizer.decode_bytes(following, continues=True)
        assert list(boundaries_of(row["token_lengths"])) == tokenizer.ends(following).tolist()
    inside = [row["continuation"][b] & 0xC0 == 0x80 for row in rows for b in boundaries_of(row["token_lengths"])[:-1]]
    assert (sum(inside) > 1000) == (policy == SPLITS_CHARACTERS)


def test_bytes_a_site_on_omnimath(real_data: Path, tmp_path: Path) -> None:
    lines = (real_data / "omnimath" / "omni_math_rule.jsonl").read_bytes().splitlines()[:300]
    rows = [json.loads(line) for line in lines]
    texts = list(dict.fromkeys(unicodedata.normalize("NFC", r["problem"] + "\n\n" + r["solution"]) for r in rows))
    policy = real_data / "tokenizers" / "deepseek-r1-distill-qwen"
    _, record = data_stages(tmp_path, manifest(policy), *scored(texts, CorpusTokenizer.load(policy)), 300)
    (file,) = record.files("train")
    metadata = pq.read_metadata(file.path)
    contexts = SHARDS.names.index("context")
    context = sum(metadata.row_group(g).column(contexts).total_compressed_size for g in range(metadata.num_row_groups))
    assert metadata.num_rows > 30_000
    assert context / metadata.num_rows < 9
    assert file.path.stat().st_size / metadata.num_rows < 40
