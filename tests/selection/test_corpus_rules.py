"""Rules over the whole corpus, compared with a plain version that has all candidates in memory."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import InputFile, Record, Shard
from pipeline.core.parquet import parquet_writer
from pipeline.core.random_keys import random_key, random_keys
from pipeline.core.stage import run_stage
from pipeline.selection.corpus_rules import CANDIDATES, CORPUS_REASONS, decisions, mixture_counts
from pipeline.selection.external_sort import Rows, in_order
from stages.select import VERDICT
from tests.stages.published import InProcess

ROOT = Path(__file__).parents[2]


def plain(config: SelectConfig, candidates: pl.DataFrame) -> list[int]:
    """All candidates in one frame, which is how these rules were first written."""
    remaining = candidates.with_row_index("row")
    verdict_C = np.zeros(candidates.height, dtype=np.uint8)

    def keep(reason: str, kept: pl.DataFrame) -> pl.DataFrame:
        dropped = remaining.join(kept.select("row"), on="row", how="anti")["row"].to_numpy()
        verdict_C[dropped] = 1 + CORPUS_REASONS.index(reason)
        return kept

    def draw(among: str, most: int) -> pl.DataFrame:
        drawn = pl.Series("draw", random_keys(random_key(among), remaining["key"].to_numpy()), dtype=pl.UInt64)
        return remaining.with_columns(drawn).filter(pl.col("draw").rank("ordinal").over(among) <= most).drop("draw")

    if config.thin:
        remaining = keep("near_duplicate", draw("twin", config.thin.most))
    if config.top_fraction:
        most = int(np.ceil(config.top_fraction * remaining.height))
        order = remaining.sort(["entropy", "key"], descending=[True, False], maintain_order=True)
        remaining = keep("top_fraction", order.head(most).sort("row"))
    if config.strata:
        remaining = keep("strata", draw("stratum", config.strata.sites))
    if config.mixture:
        available = dict(remaining["corpus"].value_counts().iter_rows())
        counts = mixture_counts(config.mixture.weights, available, config.max_sites)
        rank = pl.col("key").rank("ordinal").over("corpus")
        count = pl.col("corpus").replace_strict(counts, default=0, return_dtype=pl.Int64)
        remaining = keep("mixture", remaining.filter(rank <= count))
    if config.max_sites:
        remaining = keep("corpus_cap", remaining.sort("key", maintain_order=True).head(config.max_sites))
    return verdict_C.tolist()


def in_tables(candidates: pl.DataFrame, cuts: list[int], folder: Path) -> list[InputFile]:
    """The candidates in tables that end at these rows."""
    files, ends = [], [*sorted(min(cut, candidates.height) for cut in cuts), candidates.height]
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        files.append(InputFile(folder / f"{number:05d}.parquet"))
        with parquet_writer(files[-1].path, CANDIDATES) as writer:
            writer.write_table(candidates.slice(begin, end - begin).to_arrow().cast(CANDIDATES))
    return files


def decided(config: SelectConfig, files: list[InputFile], count: int, folder: Path, at_once: int) -> NDArray[np.uint8]:
    verdict_C = np.zeros(count, np.uint8)
    decisions(config, files, verdict_C, folder, at_once)
    return verdict_C


KEYS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))  # some collide, as keys of 64 bits hardly ever do
ENTROPIES = st.one_of(st.sampled_from([-0.0, 0.0, 1.0, 1.5, -0.25]), st.floats(-1, 20, width=32))
CANDIDATE = st.tuples(KEYS, ENTROPIES, st.integers(0, 4), st.sampled_from(["", "a", "b", "ä"]), st.sampled_from("xyz"))
TABLE = st.lists(CANDIDATE, max_size=60)
WEIGHTS = st.dictionaries(st.sampled_from("xy"), st.sampled_from([0.1, 1, 3]), min_size=1)
RULES: dict[str, st.SearchStrategy[Any]] = {
    "thin": st.builds(dict, most=st.integers(1, 4)),
    "top_fraction": st.floats(0.01, 1),
    "strata": st.builds(dict, by=st.just("field"), sites=st.integers(1, 12)),
    "mixture": st.builds(
        dict, weights=st.dictionaries(st.sampled_from("xy"), st.sampled_from([0.1, 1, 3]), min_size=1)
    ),
    "max_sites": st.integers(1, 40),
}


def frame_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = {"key": pl.UInt64, "entropy": pl.Float32, "twin": pl.UInt64, "stratum": pl.String, "corpus": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


@given(TABLE, st.fixed_dictionaries({}, optional=RULES), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 12))
def test_the_same_as_all_at_once(
    rows: list[tuple[Any, ...]], rules: dict[str, Any], cuts: list[int], at_once: int
) -> None:
    config, candidates = SelectConfig(**rules), frame_of(rows)
    with TemporaryDirectory() as scratch:
        files = in_tables(candidates, cuts, Path(scratch))
        try:
            expected = plain(config, candidates)
        except UserError:
            with pytest.raises(UserError, match="is left for the mixture"):
                decided(config, files, len(rows), Path(scratch), at_once)
            return
        assert decided(config, files, len(rows), Path(scratch), at_once).tolist() == expected
        assert len(list(Path(scratch).iterdir())) == len(files)  # nothing stays in the scratch folder


def test_by_hand(tmp_path: Path) -> None:
    """Two of the three of highest entropy, then the one with the smaller key."""
    rows = [(3, 2.0, 0, "", ""), (1, 1.0, 0, "", ""), (2, 3.0, 0, "", "")]
    config = SelectConfig(top_fraction=0.6, max_sites=1)
    files = in_tables(frame_of(rows), [1], tmp_path)
    assert [CORPUS_REASONS[code - 1] if code else "" for code in decided(config, files, 3, tmp_path, 2)] == [
        "corpus_cap",
        "top_fraction",
        "",
    ]


def test_ties_at_the_threshold_are_decided_by_key(tmp_path: Path) -> None:
    """A thousand equal entropies, of which a tenth has room, over parts that end within them."""
    rows = [(int(key), 1.0, 0, "", "") for key in np.random.default_rng(0).permutation(1000)]
    found = decided(SelectConfig(top_fraction=0.1), in_tables(frame_of(rows), [300], tmp_path), 1000, tmp_path, 64)
    assert [row[0] < 100 for row in rows] == (found == 0).tolist()


def test_zero_has_no_sign(tmp_path: Path) -> None:
    """The key decides between 0 and -0, as between all equal entropies."""
    rows = [(key, -0.0 if key % 2 == 0 else 0.0, 0, "", "") for key in range(10)]
    found = decided(SelectConfig(top_fraction=0.3), in_tables(frame_of(rows), [], tmp_path), 10, tmp_path, 4)
    assert np.flatnonzero(found == 0).tolist() == [0, 1, 2]


NUMBERS = st.one_of(st.integers(0, 2), st.integers(0, 2**64 - 1))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=200), st.integers(1, 50), st.integers(1, 70))
def test_parts_are_in_order_and_no_larger_than_asked_for(
    values: list[tuple[int, int]], at_once: int, per_table: int
) -> None:
    major, minor = (np.array([v[i] for v in values], np.uint64) for i in (0, 1))
    rows = Rows(major, minor, np.arange(len(values)))
    tables = [rows.at(slice(begin, begin + per_table)) for begin in range(0, len(values), per_table)]
    with TemporaryDirectory() as scratch:
        parts = [part.row for part in in_order(tables, len(values), Path(scratch), at_once)]
    assert [row for part in parts for row in part.tolist()] == sorted(
        range(len(values)), key=lambda row: (*values[row], row)
    )
    assert all(0 < len(part) <= at_once for part in parts)


def many(count: int) -> pl.DataFrame:
    """Candidates of which half share a twin and a stratum, and many an entropy."""
    draws = np.random.default_rng(0)
    half = draws.random(count) < 0.5
    return pl.DataFrame(
        {
            "key": draws.integers(0, 2**63, count).astype(np.uint64),
            "entropy": (draws.integers(0, 30, count) / 8).astype(np.float32),
            "twin": np.where(half, 7, draws.integers(0, count, count)).astype(np.uint64),
            "stratum": np.where(half, "big", draws.integers(0, 50, count).astype(str)),
            "corpus": draws.choice(["x", "y"], count),
        }
    )


ALL_RULES = SelectConfig(
    thin={"most": 1500},
    top_fraction=0.9,
    strata={"by": "field", "sites": 900},
    mixture={"weights": {"x": 2, "y": 1}},
    max_sites=5000,
)


def test_memory_does_not_grow_with_the_candidates(tmp_path: Path) -> None:
    """Bytes of numpy's arrays, which hold what is sorted. In memory, the candidates would take 24 bytes each."""
    peaks = []
    for count in (50_000, 200_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        files = in_tables(many(count), list(range(0, count, 2500)), folder)
        verdict_C = np.zeros(count, np.uint8)
        tracemalloc.start()
        decisions(ALL_RULES, files, verdict_C, folder, at_once=10_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] and peaks[1] < 200_000 * 24 / 3


@pytest.mark.parametrize("at_once", [70, 500, 10_000])
def test_the_same_over_many_parts(tmp_path: Path, at_once: int) -> None:
    candidates = many(4000)
    rules = ALL_RULES.model_copy(update={"max_sites": 200})
    found = decided(rules, in_tables(candidates, [1000, 1000, 3333], tmp_path), 4000, tmp_path, at_once)
    assert found.tolist() == plain(rules, candidates)
    assert set(found.tolist()) == {0, 1, 2, 3, 4}  # the mixture leaves no more than 200


def verdicts(work: Path, files: list[InputFile]) -> Record:
    listed = {f"candidates-{number}": file for number, file in enumerate(files)}
    return run_stage(VERDICT, ALL_RULES, [Shard(0, listed, {})], {}, work, InProcess())


KILLED = """
import sys
from pathlib import Path
from pipeline.core.artifact import InputFile
from tests.selection.test_corpus_rules import verdicts

files = [InputFile(path) for path in sorted(Path(sys.argv[1]).glob("*.parquet"))]
print("begins", flush=True)
verdicts(Path(sys.argv[2]), files)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    files = in_tables(many(300_000), list(range(0, 300_000, 20_000)), tmp_path / "tables")
    start = time.monotonic()
    expected = verdicts(tmp_path / "undisturbed", files)
    lasts, killed = time.monotonic() - start, 0
    moments = random.Random(0)
    for number in range(10):
        work = tmp_path / str(number)
        command = [sys.executable, "-c", KILLED, tmp_path / "tables", work]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout and process.stdout.readline() == b"begins\n"
            time.sleep(moments.uniform(0, lasts))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        found = verdicts(work, files)
        assert found.content == expected.content and not (found.directory / "tmp").exists()
    assert killed > 0
