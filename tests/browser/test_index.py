"""What the live page counts is what polars counts over the Parquet files."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.audit.browse.compare as compare_module
import pipeline.audit.browse.documents as documents_module
from commands.inspect.browse import open_library
from pipeline.audit.browse.column_index import ColumnIndex, Slices
from pipeline.audit.browse.compare import MIN_SHARDS, Count, _margin, compare
from pipeline.audit.browse.documents import Filter
from pipeline.audit.browse.index import index
from pipeline.audit.browse.rules import Where
from pipeline.audit.browse.whatif import chart
from pipeline.audit.lineage import lineage_of
from pipeline.config.errors import UserError
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record
from tests.browser.conftest import Live
from tests.browser.corpus import METADATA, TIES, Halting
from tests.stages.published import InProcess, cut, publish_tables

BANDS = BandsConfig()


@pytest.fixture(scope="module")
def positions(live: Live) -> pl.DataFrame:
    """Every position that a rule can select, straight from the files."""
    lists = ["entropy", "entropy_partial", "nll", "rank", "field", "reference_nll"]
    documents = pl.read_parquet([file.path for file in live.built.documents.files("documents")])
    difficulty = pl.col("meta").str.json_path_match("$.difficulty").cast(pl.Float64)
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    return (
        scores.with_columns(
            position=pl.int_ranges(0, pl.col("entropy").list.len()), tokens=pl.col("entropy").list.len()
        )
        .select("doc_id", "split", "tokens", "position", *lists)
        .explode("position", *lists)
        .drop_nulls("entropy")
        .with_columns(excess_loss=pl.col("nll") - pl.col("reference_nll"))
        .join(documents.select("doc_id", difficulty=difficulty), on="doc_id")
    )


def in_many_shards(live: Live, folder: Path) -> ColumnIndex:
    """The corpus again, two documents in a shard."""
    documents, scores = (
        pa.concat_tables([pq.read_table(file.path) for file in record.files(name)])
        for record, name in ((live.built.documents, "documents"), (live.built.scores, "scores"))
    )
    ingested = publish_tables(folder, "ingest", [{"documents": part} for part in cut(documents, 2)])
    scored = publish_tables(folder, "score", [{"scores": part} for part in cut(scores, 2)])
    return ColumnIndex(index(ingested, scored, work=folder, executor=InProcess()))


def sites_of(record: Record) -> pl.DataFrame:
    return pl.read_parquet([file.path for file in record.files("sites")])


RULES = st.sampled_from(
    [
        "entropy > {a}",
        "entropy >= {a} AND field = 'solution'",
        "entropy > {a} OR field = 'problem'",
        "entropy BETWEEN {a} AND {b}",
        "NOT (entropy > {a})",
        "nll < {b} AND entropy > {a}",
        "rank > 3 OR entropy > {b}",
        "position > 5 AND tokens < 30",
        "entropy_partial > {a} AND field <> 'problem'",
        "entropy > {a} AND entropy < nll",
        "doc_id LIKE 'a%'",
        "difficulty > 0.5 AND entropy > {a}",
        "difficulty = 2 OR nll > {b}",
        "excess_loss > 0.5 OR reference_nll IS NULL AND rank > 2",
        "true",
    ]
)
NUMBERS = st.one_of(
    st.sampled_from(TIES), st.integers(0, 250).map(lambda n: n / 100), st.floats(0, 3).map(lambda x: round(x, 4))
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=RULES, second=RULES, a=NUMBERS, b=NUMBERS, split=st.sampled_from(["train", "validation"]))
def test_two_rules_are_counted_as_polars_counts_them(
    live: Live, positions: pl.DataFrame, first: str, second: str, a: float, b: float, split: str
) -> None:
    first, second = first.format(a=a, b=b), second.format(a=b, b=a)
    made = compare(live.library.store, Where.parse(first, METADATA), Where.parse(second, METADATA), split, BANDS)
    expected = positions.filter(pl.col("split") == split).with_columns(
        first=pl.sql_expr(first).fill_null(False), second=pl.sql_expr(second).fill_null(False)
    )
    gained, lost = (expected.filter(pl.col(x) & ~pl.col(y)) for x, y in (("second", "first"), ("first", "second")))
    assert (made.before, made.after) == (expected["first"].sum(), expected["second"].sum())
    assert (made.total("gained"), made.total("lost")) == (gained.height, lost.height)
    assert made.documents_changed == pl.concat([gained, lost])["doc_id"].n_unique()
    kept = expected.filter(pl.col("second"))
    assert _after(made.by("field"), "field") == _counts(kept["field"])
    bands = [["none", "easy", "medium", "hard"][(e > 0.5) + (e > 1.0) + (e > 1.5)] for e in kept["entropy"]]
    assert _after(made.by("band"), "band") == Counter(bands)
    ids = live.library.store.documents["doc_id"]
    of_documents = {ids[int(n)]: int(made.gained_D[n]) for n in np.flatnonzero(made.gained_D)}
    assert of_documents == _counts(gained["doc_id"])


OPERATORS = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "=": np.equal}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("tie", TIES)
def test_what_is_equal_to_a_threshold_is_kept_as_the_operator_says(
    live: Live, positions: pl.DataFrame, tie: float, split: str
) -> None:
    """On a step of the grid, between two steps, and at a band's threshold; counted by numpy in 32 bits."""
    entropy = positions.filter(pl.col("split") == split)["entropy"].to_numpy()
    threshold = np.float32(tie)
    assert (entropy == threshold).any()
    for operator, compares in OPERATORS.items():
        rule = Where.parse(f"entropy {operator} {tie!r}")
        made = compare(live.library.store, Where.parse("false"), rule, split, BANDS)
        assert made.after == compares(entropy, threshold).sum(), operator
        above = compares(entropy, threshold)
        hard = np.sum([entropy > np.float32(limit) for limit in (0.5, 1.0, 1.5)], axis=0)
        bands = {name: int((above & (hard == i)).sum()) for i, name in enumerate(("none", "easy", "medium", "hard"))}
        assert _after(made.by("band"), "band") == {name: n for name, n in bands.items() if n}, operator
    between = compare(
        live.library.store, Where.parse("false"), Where.parse(f"entropy BETWEEN {tie!r} AND 1.25"), split, BANDS
    )
    assert between.after == ((entropy >= threshold) & (entropy <= np.float32(1.25))).sum()
    bars = chart(live.library.store, split, BANDS, between.kept_B).bars
    ends = np.array([bar.entropy for bar in bars], np.float32)
    assert [bar.count for bar in bars[:-1]] == [
        int(((entropy > low) & (entropy <= high)).sum()) for low, high in pairwise(ends)
    ]
    kept = entropy[(entropy >= threshold) & (entropy <= np.float32(1.25))]
    assert [bar.kept for bar in bars[:-1]] == [
        int(((kept > low) & (kept <= high)).sum()) for low, high in pairwise(ends)
    ]


def test_a_document_marks_ties_as_the_operator_says(live: Live) -> None:
    for number in range(0, live.library.store.documents.height, 5):
        document = live.library.document(number)
        entropy = document.frame["entropy"].to_numpy()
        for operator in OPERATORS:
            state = live.library.verdict(document, f"entropy {operator} 1.0").state_T
            kept = OPERATORS[operator](entropy, np.float32(1.0)) & ~np.isnan(entropy)
            assert [t for t, reason in enumerate(state) if not reason] == np.flatnonzero(kept).tolist()


def _after(table: pl.DataFrame, column: str) -> dict[str, int]:
    counted = {row[column]: row["both"] + row["gained"] for row in table.iter_rows(named=True)}
    return {name: count for name, count in counted.items() if count}


def _counts(column: pl.Series) -> dict[str, int]:
    return dict(column.value_counts().iter_rows())


def test_a_capped_selection_is_compared_by_its_own_sites(live: Live) -> None:
    capped, current = sites_of(live.built.capped), sites_of(live.built.current)
    name = f"select:{live.built.capped.fingerprint}"
    assert live.library.selections[name].later == ["document_cap"]
    made = live.library.compare(live.library.current.name, name, "train")
    train = {
        which: set(t.filter(pl.col("split") == "train")["site_id"]) for which, t in (("a", current), ("b", capped))
    }
    assert train["b"] < train["a"]
    assert (made.before, made.after) == (len(train["a"]), len(train["b"]))
    assert (made.total("gained"), made.total("lost")) == (0, len(train["a"] - train["b"]))


def test_what_cell_and_entropy_decide_is_not_read(live: Live) -> None:
    store = live.library.store
    made = compare(
        store, Where.parse("entropy > 1.0"), Where.parse("entropy > 1.25 AND field = 'solution'"), "train", BANDS
    )
    assert made.read == made.total("lost")  # to know their documents, and nothing else
    assert compare(store, Where.parse("entropy > 1"), Where.parse("entropy > 1"), "train", BANDS).read == 0


def test_estimates_come_first_and_exact_counts_after_them(live: Live, tmp_path: Path) -> None:
    store = in_many_shards(live, tmp_path)
    nothing, rule = Where.parse("false"), Where.parse("nll > 1")
    halting = Halting(rule, 10)
    count = Count(store, nothing, halting, "train", BANDS)
    running = threading.Thread(target=count.run)
    running.start()
    assert not count.wait(0)
    early = count.result()
    halting.let.set()
    running.join()
    exact, late = compare(store, nothing, rule, "train", BANDS), count.result()
    assert MIN_SHARDS <= early.shards_read <= 10 and not early.exact and late.exact and not late.margins
    assert early.margins["gained"] > 0 == early.margins["lost"] and early.margins["gained"] == early.margins["after"]
    assert abs(early.after - exact.after) <= 3 * early.margins["after"]
    assert (late.after, late.documents_changed) == (exact.after, exact.documents_changed)
    assert np.array_equal(late.gained_D, exact.gained_D) and (early.gained_D <= exact.gained_D).all()


def test_an_estimate_waits_for_the_first_shard_of_the_random_order(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are read faster than others are no random sample: they are the small ones."""
    store = in_many_shards(live, tmp_path)
    monkeypatch.setattr(compare_module.os, "cpu_count", lambda: 2)
    asked, let = threading.Event(), threading.Event()

    class FirstIsSlow(Halting):
        def ask(self, store: ColumnIndex, slices: Slices, cell: Mapping[str, str]) -> np.ndarray:
            if slices.shard_N[0] == count._parts[0].shard:
                asked.set()
                let.wait()
            return self.rule.ask(store, slices, cell)

    rule = Where.parse("nll > 1")
    count = Count(store, Where.parse("false"), FirstIsSlow(rule, 0), "train", BANDS)
    running = threading.Thread(target=count.run)
    running.start()
    asked.wait()
    deadline = time.monotonic() + 60
    while len(count._ahead) < len(count._parts) - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(count._ahead) == len(count._parts) - 1 and count.result().shards_read == 0
    let.set()
    running.join()
    assert count.result().after == compare(store, Where.parse("false"), rule, "train", BANDS).after


def test_a_count_that_takes_too_long_is_ended(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page gets an answer at once, as wide as nothing is known, and in the end is told."""
    monkeypatch.setattr(compare_module, "FIRST_ANSWER", 0.0)
    halting = Halting(Where.parse("nll > 1"), 0)
    count = Count(live.library.store, Where.parse("false"), halting, "train", BANDS)
    assert not count.wait(0)
    early = count.result()
    assert not early.exact and early.shards_read == 0
    assert (
        early.margins["after"]
        == compare(live.library.store, Where.parse("false"), Where.parse("true"), "train", BANDS).after
    )
    monkeypatch.setattr(compare_module, "TIME_LIMIT", 0.0)
    running = threading.Thread(target=count.run)
    running.start()
    with pytest.raises(UserError, match=r"counting was aborted after"):
        while True:
            count.result()
            time.sleep(0.01)
    halting.let.set()  # what is being read is read to its end
    running.join()


def test_intervals_hold_what_they_should() -> None:
    """Ten of forty shards of different sizes, 1,000 draws: the 95 % interval of the total holds it in about 95 %."""
    rng = np.random.default_rng(0)
    x_S = rng.integers(500, 1500, 40)
    y_S = rng.binomial(x_S, rng.uniform(0.1, 0.3, 40))
    hits = 0
    for _ in range(1000):
        drawn = rng.choice(40, 10, replace=False)
        estimate = y_S[drawn].sum() / x_S[drawn].sum() * x_S.sum()
        hits += abs(estimate - y_S.sum()) <= _margin(y_S[drawn], x_S[drawn], 40)
    assert 880 < hits < 980


def test_every_position_is_in_the_index_or_counted(live: Live, positions: pl.DataFrame) -> None:
    counters = live.library.store.counters
    assert counters["positions"] == positions.height
    assert counters["tokens"] == counters["positions"] + counters["not_scorable"] + counters["inside_character"]
    bars = chart(live.library.store, "train", BANDS, None).bars
    train = positions.filter(pl.col("split") == "train")
    assert sum(bar.count for bar in bars) == train.height
    assert bars[-1].count == train.filter(pl.col("entropy") > 3).height > 0


@pytest.mark.parametrize("where", ["entropi > 1", "entropy >", "MAX(entropy) > 1", "entropy", "(SELECT 1) > 0"])
def test_what_is_no_rule_is_refused_as_select_refuses_it(live: Live, where: str) -> None:
    with pytest.raises(UserError, match="where"):
        live.library.compare(live.library.current.name, where, "train")


# ------------------------------------------------------------------------------------------------- documents


@pytest.fixture(scope="module")
def corpus(live: Live) -> pl.DataFrame:
    return pl.read_parquet([file.path for file in live.built.documents.files("documents")])


def found(live: Live, **wanted: object) -> set[str]:
    numbers = live.library.finder.find(Filter(**wanted))  # type: ignore[arg-type]
    return set(live.library.store.documents["doc_id"].gather(numbers))


@pytest.mark.parametrize("text", ["café", "CAFÉ", "How many", "</SCRIPT>", "7*7", ".", "\\", "数学", "nowhere at all"])
def test_a_search_finds_what_contains_the_text_in_any_case(live: Live, corpus: pl.DataFrame, text: str) -> None:
    expected = [row["doc_id"] for row in corpus.iter_rows(named=True) if text.lower() in row["text"].lower()]
    assert found(live, text=text) == set(expected)


def test_a_search_that_takes_too_long_is_ended(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard that is being read halts; those after it are not read at all."""
    read, store = Counter[int](), live.library.store
    let, texts = threading.Event(), store.texts

    def halting(shard: int) -> pl.Series:
        read[shard] += 1
        let.wait()
        return texts(shard)

    class Pool(ThreadPoolExecutor):
        """One thread, which is let go once nothing more is to be read."""

        def __init__(self, _: int | None) -> None:
            super().__init__(1)

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait and not cancel_futures, cancel_futures=cancel_futures)
            if cancel_futures:
                let.set()

    monkeypatch.setattr(documents_module, "TIME_LIMIT", 0.0)
    monkeypatch.setattr(documents_module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(store, "texts", halting)
    with pytest.raises(UserError, match=r"the search was aborted after"):
        found(live, text="a text that nobody searched before")
    assert read.total() <= 1 < len(store.first_document_S) - 1
    monkeypatch.undo()
    assert found(live, text="a text that nobody searched before") == set(), "the failure is not remembered"


def test_filters_of_split_source_and_metadata(live: Live, corpus: pl.DataFrame) -> None:
    both = corpus.filter((pl.col("split") == "validation") & (pl.col("source_file") == "part-1.jsonl"))
    assert found(live, split="validation", source="part-1.jsonl") == set(both["doc_id"])
    second = corpus.filter(pl.col("meta").str.contains('"difficulty": 2', literal=True))
    assert found(live, meta="difficulty=2") == set(second["doc_id"]) == found(live, meta='"difficulty": 2')
    assert found(live, meta="difficulty > 0 AND NOT difficulty = 1") == set(second["doc_id"])
    assert found(live, meta="difficulty=22") == set()


def test_filter_by_the_share_that_is_kept(live: Live, positions: pl.DataFrame) -> None:
    kept = sites_of(live.built.current).group_by("doc_id").len("kept")
    shares = positions.group_by("doc_id").len("all").join(kept, on="doc_id", how="left").fill_null(0)
    expected = shares.filter(100 * pl.col("kept") / pl.col("all") >= 15)["doc_id"]
    assert found(live, least=15.0) == set(expected)
    numbers = live.library.finder.find(Filter(order="kept"))
    ordered = live.library.finder.share_D[numbers]
    assert list(ordered) == sorted(ordered, reverse=True)


def test_a_document_shows_the_reason_of_every_position(live: Live) -> None:
    sites = sites_of(live.built.current)
    number = live.library.store.document_of[sites["doc_id"][0]]
    document = live.library.document(number)
    shown = document.heat_map(live.library.verdict(document, live.library.current.name), 0, None)
    kept = sites.filter(pl.col("doc_id") == shown["doc_id"])["position"].to_list()
    assert [t for t, state in enumerate(shown["state"]) if state == 0] == kept
    assert [shown["reasons"][state - 1] for state in shown["state"][:3]] == ["not_scorable"] * 3
    assert "".join(shown["tokens"]) == document.meta["text"]
    above, solution = shown["parts"]
    assert (above["text"], solution["text"]) == ("entropy > 1.0", "field = 'solution'")
    assert above["holds"] == "".join("01"[(entropy or 0) > 1.0] for entropy in shown["entropy"])
    assert solution["holds"] == "".join("01"[field == "solution"] for field in shown["field"])
    assert (above["values"], solution["values"]) == ({"columns": ["entropy"]}, {"columns": ["field"]})
    capped = live.library.verdict(document, f"select:{live.built.capped.fingerprint}")
    reasons = [capped.reasons[state - 1] for state in (capped.state_T[t] for t in kept) if state]
    assert set(reasons) <= {"document_cap"} and len(kept) - len(reasons) == min(2, len(kept))
    (cap,) = capped.later
    marks = {0: "1", 4: "0"}  # kept, and dropped after the rule; the others were not reached
    assert cap["holds"] == "".join(marks.get(state, "-") for state in capped.state_T)


def test_a_site_is_the_row_that_materialize_writes(live: Live, tmp_path: Path) -> None:
    from stages.materialize import materialize
    from tests.stages.published import InProcess

    built = live.built
    record = materialize(
        built.manifest, built.documents, built.scores, built.current, work=built.work, executor=InProcess()
    )
    rows = pl.read_parquet([file.path for split in ("train", "validation") for file in record.files(split)])
    for row in rows.sample(12, seed=0).iter_rows(named=True):
        document = live.library.document(live.library.store.document_of[row["doc_id"]])
        example = document.example(row["position"], built.manifest.materialize, live.library.policy_tokenizer)
        assert isinstance(example, dict)
        for name in ("context", "target", "continuation", "token_lengths", "context_truncated"):
            assert example[name] == row[name]


def test_a_site_says_how_its_rollouts_reason(live: Live) -> None:
    doc_id, _, position = live.built.site_with_rollouts.rpartition("-")
    site = live.library.site(live.library.document(live.library.store.document_of[doc_id]), int(position))
    assert len(site["rollouts"]) == 2 and {g: n for g, n in site["patterns"].items() if n} == {"reflection": 1}


def test_the_selection_that_the_manifest_describes_is_shown_whatever_was_made_last(live: Live) -> None:
    """The same as `rpt audit`, `rpt show` and `rpt stats` do; the other selections of these scores stand beside it."""
    built = live.built
    for record, cap in ((built.capped, 2), (built.current, None)):
        rule = built.manifest.select.model_copy(update={"max_per_document": cap})
        manifest = built.manifest.model_copy(update={"select": rule})
        library = open_library(manifest, work=built.work, executor=InProcess())
        assert (
            library.current.record.fingerprint
            == record.fingerprint
            == lineage_of(built.work, manifest).select.fingerprint
        )
        assert {s.record.fingerprint for s in library.selections.values()} >= {
            built.capped.fingerprint,
            built.current.fingerprint,
        }
        assert library.finder.kept_D.sum() == sites_of(record).height


def test_a_selection_that_was_not_made_is_not_shown_as_another(live: Live) -> None:
    rule = live.manifest.select.model_copy(update={"where": "entropy > 7"})
    with pytest.raises(UserError, match="this selection does not exist: entropy > 7") as caught:
        open_library(live.manifest.model_copy(update={"select": rule}), work=live.built.work, executor=InProcess())
    said = str(caught.value)
    assert "rpt select" in said and f"{live.built.current.fingerprint} (where: entropy > 1.0 AND field" in said
