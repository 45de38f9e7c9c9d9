"""The stage `select` on published documents and scores."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from pipeline.selection.sites import SITES
from stages.select import VERSION, select
from tests.selection.tables import documents_of, scores_of
from tests.stages.published import InProcess, cut, publish_tables
from tests.toys import problems


def tables() -> tuple[pa.Table, pa.Table]:
    """Sixty documents, every tenth held out, cut every three bytes, with scores in eighths of a nat."""
    rng = random.Random(0)
    texts = [row["problem"] + row["solution"] for row in problems(60)]
    documents = documents_of(texts, ["validation" if i % 10 == 9 else "train" for i in range(60)])
    sizes = [len(text.encode()) for text in texts]
    ends = [[*range(3, size, 3), size] for size in sizes]
    entropies = [[None if t < 4 else rng.randrange(20) / 8 for t in range(len(e))] for e in ends]
    fields = [["problem" if end < size / 2 else "solution" for end in e] for e, size in zip(ends, sizes, strict=True)]
    return documents, scores_of(documents, ends, entropies, fields)


def manifest(**settings: object) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": {"model": "none"},
            "select": settings,
            "materialize": {"policy_tokenizer": "none"},
        }
    )


def run(work: Path, per_shard: int = 20, **settings: object) -> Record:
    documents, scores = (cut(table, per_shard) for table in tables())
    ingested = publish_tables(work, "ingest", [{"documents": table} for table in documents])
    scored = publish_tables(work, "score", [{"scores": table} for table in scores])
    return select(manifest(**settings), ingested, scored, work=work, executor=InProcess())


def sites_of(record: Record) -> list[dict[str, object]]:
    read = [read_table(file) for file in record.files("sites")]
    assert all(table.schema.equals(SITES) for table in read)
    return pa.concat_tables(read).to_pylist()


def test_golden(tmp_path: Path) -> None:
    """Whatever changes the output must raise the stage's VERSION: it is all that tells old output from new."""
    record = run(tmp_path, max_per_document=9, max_sites=200)
    digest = hashlib.sha256(canonical_json([sites_of(record), record.counters]).encode()).hexdigest()[:16]
    assert {VERSION: digest} == {7: "3440aae8c6b451e0"}


def test_shards_stay_aligned_and_counts_add_up(tmp_path: Path) -> None:
    record = run(tmp_path, per_shard=7)
    documents, scores = tables()
    for shard, file in enumerate(record.files("sites")):
        mine = documents["doc_id"].to_pylist()[shard * 7 : shard * 7 + 7]
        order = [mine.index(doc_id) for doc_id in read_table(file)["doc_id"].to_pylist()]
        assert order == sorted(order)
    assert shard == 8
    tokens = sum(len(ends) for ends in scores["token_ends"].to_pylist())
    counters = record.counters
    assert counters["tokens"] == tokens
    assert sum(n for name, n in counters.items() if name.startswith(("dropped.", "kept."))) == tokens
    assert counters["band.easy"] >= counters["band.medium"] >= counters["band.hard"] > 0
    assert counters["dropped.not_scorable"] == 60 * 4
    assert min(counters["dropped.inside_character"], counters["kept.train"], counters["kept.validation"]) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_per_document": 3},
        {"max_sites": 100},
        {"max_sites": 10**9},
        {"top_fraction": 0.3, "strategy": "random"},
        {"strata": {"by": "field", "sites": 20}, "max_sites": 30},
        {"strata": {"by": "source_file", "sites": 20}, "top_fraction": 0.5},
        {"thin": {"suffix_tokens": 1, "most": 2}, "max_per_document": 20},
    ],
)
def test_it_does_not_matter_how_the_corpus_is_cut(tmp_path: Path, settings: dict[str, Any]) -> None:
    records = [run(tmp_path / str(per_shard), per_shard, **settings) for per_shard in (60, 20, 7)]
    assert sites_of(records[0]) == sites_of(records[1]) == sites_of(records[2])
    assert records[0].counters == records[1].counters == records[2].counters


@pytest.mark.parametrize("most", [1, 20, 100])
def test_max_sites_is_exact_and_for_training_only(tmp_path: Path, most: int) -> None:
    everything, capped = run(tmp_path / "all"), run(tmp_path / "capped", max_sites=most)
    assert capped.counters["kept.train"] == most
    assert capped.counters["kept.validation"] == everything.counters["kept.validation"]
    assert capped.counters["dropped.corpus_cap"] == everything.counters["kept.train"] - most
    kept = {site["site_id"] for site in sites_of(capped)}
    assert kept < {site["site_id"] for site in sites_of(everything)}


def test_max_sites_of_all_in_one_shard(tmp_path: Path) -> None:
    """One candidate over the cap."""
    whole = run(tmp_path / "all", per_shard=60).counters["kept.train"]
    assert run(tmp_path / "one_less", per_shard=60, max_sites=whole - 1).counters["kept.train"] == whole - 1
    assert run(tmp_path / "enough", per_shard=60, max_sites=whole).counters["kept.train"] == whole


def test_a_top_share_is_that_of_highest_entropy_in_the_corpus(tmp_path: Path) -> None:
    everything, top = run(tmp_path / "all"), run(tmp_path / "top", top_fraction=0.25)
    entropies = sorted((s["entropy"] for s in sites_of(everything) if s["split"] == "train"), reverse=True)
    kept = sorted((s["entropy"] for s in sites_of(top) if s["split"] == "train"), reverse=True)
    assert kept == entropies[: -(-len(entropies) // 4)]
    assert top.counters["dropped.top_fraction"] == len(entropies) - len(kept)


def test_every_stratum_has_the_same_budget(tmp_path: Path) -> None:
    everything, budgeted = run(tmp_path / "all"), run(tmp_path / "some", strata={"by": "field", "sites": 25})
    before = Counter(s["field"] for s in sites_of(everything) if s["split"] == "train")
    after = Counter(s["field"] for s in sites_of(budgeted) if s["split"] == "train")
    assert after == {field: min(25, count) for field, count in before.items()} and max(before.values()) > 25


def test_near_duplicates_are_thinned_to_as_many_as_asked_for(tmp_path: Path) -> None:
    _, scores = tables()
    tokens = dict(zip(scores["doc_id"].to_pylist(), scores["token_ids"].to_pylist(), strict=True))

    def twin(site: dict[str, Any]) -> tuple[int, ...]:
        return tuple(tokens[site["doc_id"]][max(0, site["position"] - 2) : site["position"] + 1])

    everything, thin = run(tmp_path / "all"), run(tmp_path / "thin", thin={"suffix_tokens": 2, "most": 3})
    before = Counter(twin(s) for s in sites_of(everything) if s["split"] == "train")
    after = Counter(twin(s) for s in sites_of(thin) if s["split"] == "train")
    assert after == {suffix: min(3, count) for suffix, count in before.items()} and max(before.values()) > 3
    assert thin.counters["dropped.near_duplicate"] == before.total() - after.total()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_an_exclusion_list_is_part_of_what_was_selected(tmp_path: Path, suffix: str) -> None:
    ids = [site["site_id"] for site in sites_of(run(tmp_path))]
    path = tmp_path / f"flags{suffix}"

    def flag(rows: list[str]) -> None:
        frame = pl.DataFrame({"site_id": rows, "note": ["1,5"] * len(rows)})
        frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)

    flag(ids[::3])
    record = run(tmp_path, exclude=str(path))
    assert [site["site_id"] for site in sites_of(record)] == [i for i in ids if i not in ids[::3]]
    flag(ids[:1])
    assert run(tmp_path, exclude=str(path)).fingerprint != record.fingerprint
    pl.DataFrame({"site": ids}).write_csv(tmp_path / "other.csv")
    with pytest.raises(UserError, match="needs a column `site_id`"):
        run(tmp_path, exclude=str(tmp_path / "other.csv"))
    with pytest.raises(UserError, match="cannot be read as flags, Parquet or CSV"):
        run(tmp_path, exclude=str(tmp_path / "missing.parquet"))


def test_another_seed_keeps_other_sites(tmp_path: Path) -> None:
    a, b = (run(tmp_path / str(seed), max_sites=50, seed=seed) for seed in (0, 1))
    assert {s["site_id"] for s in sites_of(a)} != {s["site_id"] for s in sites_of(b)}


def test_a_second_run_does_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, max_sites=50)
    capfd.readouterr()
    assert run(tmp_path, max_sites=50) == first
    assert capfd.readouterr().err.count("up to date") == 5  # two upstream stages, candidates, verdicts, sites


@pytest.mark.parametrize("key", ["where", "validation_where"])
def test_a_bad_expression_is_told_before_any_shard_runs(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"`select\.{key}` names `entropi`.*did you mean `entropy`"):
        run(tmp_path, **{key: "entropi > 1"})
    assert not (tmp_path / "select").exists()


def test_selecting_nothing_says_what_there_is(tmp_path: Path) -> None:
    """Entropies are 0, 1/8 … 19/8, equally often: half exceed 1.12 or 1.25, one in ten 2.12 or 2.25."""
    for _ in range(2):  # also when the empty selection is up to date
        with pytest.raises(UserError) as caught:
            run(tmp_path, where="entropy > 9 AND field = 'solution'")
        message = str(caught.value)
        assert "selects no training position: entropy > 9 AND field = 'solution'" in message
        assert "in half 1.12" in message or "in half 1.25" in message
        assert "in 1 of 10 2.1" in message and "in 1 of 100 2.3" in message
        assert "fields: 'problem', 'solution'" in message


def test_of_many_shards_some_tell_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and time do not grow with the corpus: of 60 shards of a document each every ninth is read."""
    monkeypatch.setattr("stages.select.LOOKED_AT", 7)
    scores = tables()[1].to_pylist()[::9]
    looked = [row for row in scores if row["split"] == "train"]
    positions = sum(value is not None for row in looked for value in row["entropy"])
    with pytest.raises(UserError, match=f"of {positions:,} scored ones in 7 of 60 shards, entropy exceeds in half 1"):
        run(tmp_path, per_shard=1, where="entropy > 9")


def test_scores_of_nothing_say_so(tmp_path: Path) -> None:
    documents = documents_of(["ab"])
    ingested = publish_tables(tmp_path, "ingest", [{"documents": documents}])
    scored = publish_tables(tmp_path, "score", [{"scores": scores_of(documents, [[1, 2]], [[None, None]])}])
    with pytest.raises(UserError, match="of 0 scored ones"):
        select(manifest(), ingested, scored, work=tmp_path, executor=InProcess())


def test_a_changed_score_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    run(tmp_path)
    (path, *_) = sorted((tmp_path / "score").rglob("scores-*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=path.name):
        run(tmp_path, where="entropy > 1.5")


def test_strata_by_a_name_that_nothing_has_are_refused(tmp_path: Path) -> None:
    """Every site would be of one stratum, and a handful be left."""
    for name in ("nope", "corpus"):  # there is one source, so no site has a `corpus`
        with pytest.raises(UserError, match=f"no document has the metadata `{name}`"):
            run(tmp_path, strata={"by": name, "sites": 5})
