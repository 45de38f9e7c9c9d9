"""Training examples against a hand-worked document and a plain twin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import IntegrityError
from pipeline.config.manifest import MaterializeConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import doc_id
from pipeline.selection.sites import SITES
from pipeline.shards.examples import _round_up, examples
from pipeline.shards.schema import SHARDS, SPLITS
from tests.selection.tables import documents_of
from tests.shards.corpus import STEP, TIES, made
from tests.shards.tokenizers import tokenizer_of

ADDED = SHARDS.names[len(SITES.names) :]


def config_of(**lengths: int) -> MaterializeConfig:
    return MaterializeConfig(policy_tokenizer="by hand", **lengths)


def sites_of(offsets: dict[str, list[int]], split: str = "train") -> pa.Table:
    """Sites of texts at byte offsets, in order; positions are counted from 0."""
    rows = [
        {
            "site_id": f"{doc_id(text)}-{t}",
            "doc_id": doc_id(text),
            "position": t,
            "byte_offset": offset,
            "field": "solution",
            "entropy": t / 8,
            "nll": t / 4,
            "rank": t,
            "token_class": "word_start",
            "band": "none",
            "split": split,
        }
        for text, places in offsets.items()
        for t, offset in enumerate(places)
    ]
    return pa.Table.from_pylist(rows, schema=SITES)


def rows_of(
    config: MaterializeConfig, tokenizer: CorpusTokenizer, documents: pa.Table, sites: pa.Table
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """All examples as dictionaries, training ones first, and the counts that are not 0."""
    made = examples(config, tokenizer, documents.select(["doc_id", "text"]), sites)
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        tables = list(made.tables(split, config.row_group))
        assert all(table.schema.equals(SHARDS) and 0 < table.num_rows <= config.row_group for table in tables)
        rows += [row for table in tables for row in table.to_pylist()]
        assert sum(table.num_rows for table in tables) == made.counters[f"kept.{split}"]
    counted = sum(n for name, n in made.counters.items() if name.startswith(("dropped.", "kept.")))
    assert counted == made.counters["sites"] == sites.num_rows
    return rows, {name: count for name, count in made.counters.items() if count}


TEXT = "né 数!数b"
"""The policy's tokens: n | 1st byte of é | 2nd byte of é and the space | 2 bytes of 数 | 3rd byte of 数 and ! |
2 bytes of 数 | its 3rd byte | b; they end at 1, 2, 4, 6, 8, 10, 11, 12."""
MERGES = [(b"\xa9", b" "), (b"\xe6", b"\x95"), (b"\xb0", b"!")]


def test_hand_worked() -> None:
    tokenizer = tokenizer_of(MERGES)
    assert tokenizer.ends(tokenizer.encode(TEXT)).tolist() == [1, 2, 4, 6, 8, 10, 11, 12]
    sites = sites_of({TEXT: [0, 1, 3, 4, 7, 8, 11]})
    rows, counters = rows_of(
        config_of(max_context_tokens=4, continuation_tokens=3), tokenizer, documents_of([TEXT]), sites
    )
    assert [(row["byte_offset"], *(row[name] for name in ADDED)) for row in rows] == [
        (0, b"", b"n", "né ".encode(), [1, 1, 2], False),
        (1, b"n", b"\xc3", "é ".encode() + b"\xe6\x95", [1, 2, 2], False),
        (4, "né ".encode(), b"\xe6\x95", "数!".encode() + b"\xe6\x95", [2, 2, 2], False),
        (8, "é 数!".encode(), b"\xe6\x95", "数b".encode(), [2, 1, 1], True),
        (11, "数!数".encode(), b"b", b"b", [1], True),
    ]
    # the space and the ! begin inside a policy token
    assert counters == {
        "documents": 1,
        "sites": 7,
        "dropped.not_a_policy_boundary": 2,
        "kept.train": 5,
        "context_truncated": 2,
    }
    assert [row["site_id"][-2:] for row in rows] == ["-0", "-1", "-3", "-5", "-6"]  # the site's own columns come along
    assert [row["rank"] for row in rows] == [0, 1, 3, 5, 6]


def test_a_truncated_context_begins_with_a_whole_character() -> None:
    """Three tokens before the second 数 begin within é: the context begins after it, with fewer tokens."""
    (row,), _ = rows_of(
        config_of(max_context_tokens=3), tokenizer_of(MERGES), documents_of([TEXT]), sites_of({TEXT: [8]})
    )
    assert row["context"] == " 数!".encode() and row["context_truncated"]


def test_a_document_the_policy_loses_is_counted_and_the_others_keep_their_places() -> None:
    """The policy's tokenizer has no 4-byte characters. A site at the end of one document's text (a proxy's empty last
    token) does not begin the next one's first token."""
    texts = ["a🙂b", "ab", "xyz"]
    sites = sites_of({"a🙂b": [0, 5], "ab": [1, 2], "xyz": [0, 2]})
    rows, counters = rows_of(config_of(), tokenizer_of([], missing=[0xF0]), documents_of(texts), sites)
    assert [(row["context"], row["continuation"]) for row in rows] == [(b"a", b"b"), (b"", b"xyz"), (b"xy", b"z")]
    assert counters["documents.policy_tokenizer_not_lossless"] == 1
    assert counters["dropped.policy_tokenizer_not_lossless"] == 2
    assert counters["dropped.not_a_policy_boundary"] == 1


def test_no_site_at_all_and_sites_of_another_corpus() -> None:
    documents = documents_of(["ab"])
    assert rows_of(config_of(), tokenizer_of([]), documents, sites_of({})) == ([], {})
    with pytest.raises(IntegrityError, match="from different corpora"):
        rows_of(config_of(), tokenizer_of([]), documents, sites_of({"cd": [1]}))


# -------------------------------------------------------------------------------------- against a plain twin


def plain(
    config: MaterializeConfig, tokenizer: CorpusTokenizer, documents: pa.Table, sites: pa.Table
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows and counts by one loop over sites."""
    counters: Counter[str] = Counter(sites=sites.num_rows, documents=len(set(sites["doc_id"].to_pylist())))
    texts = {row["doc_id"]: row["text"] for row in documents.to_pylist()}
    rows = []
    for site in sites.to_pylist():
        text = texts[site["doc_id"]]
        tokens = [tokenizer.token_bytes[i] for i in tokenizer.encode(text)]
        if b"".join(tokens) != text.encode():
            counters["dropped.policy_tokenizer_not_lossless"] += 1
            continue
        starts = [len(b"".join(tokens[:t])) for t in range(len(tokens))]
        if site["byte_offset"] not in starts:
            counters["dropped.not_a_policy_boundary"] += 1
            continue
        t = starts.index(site["byte_offset"])
        context = b"".join(tokens[max(0, t - config.max_context_tokens) : t]).lstrip(bytes(range(0x80, 0xC0)))
        following = tokens[t : t + config.continuation_tokens]
        lengths = [len(token) for token in following]
        cut = t > config.max_context_tokens
        counters.update({"context_truncated": int(cut), f"kept.{site['split']}": 1})
        made = (context, tokens[t], b"".join(following), lengths, cut)
        rows.append(site | dict(zip(ADDED, made, strict=True)))
    return sorted(rows, key=lambda row: row["split"] != "train"), +counters


@st.composite
def corpora(draw: st.DrawFn) -> tuple[CorpusTokenizer, pa.Table, pa.Table]:
    """Documents, a tokenizer with random merges of neighbouring bytes, and sites where characters begin."""
    texts = draw(st.lists(st.text("ab é中🙂", min_size=1, max_size=12), min_size=1, max_size=5, unique=True))
    data = b"".join(text.encode() for text in texts)
    places = st.lists(st.integers(0, max(0, len(data) - 2)), max_size=8)
    merges = [(data[i : i + 1], data[i + 1 : i + 2]) for i in draw(places) if i + 1 < len(data)]
    tokenizer = tokenizer_of(merges, missing=draw(st.sampled_from([(), (), (0xF0,)])))
    begins = {text: [len(text[:i].encode()) for i in range(len(text))] for text in texts}
    chosen = {text: sorted(draw(st.sets(st.sampled_from(offsets)))) for text, offsets in begins.items()}
    tables = [sites_of({t: o}, draw(st.sampled_from(SPLITS))) for t, o in chosen.items()]
    return tokenizer, documents_of(texts), pa.concat_tables(tables)


@given(corpora(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_makes_what_a_plain_loop_makes(
    corpus: tuple[CorpusTokenizer, pa.Table, pa.Table], context: int, continuation: int, row_group: int
) -> None:
    config = config_of(max_context_tokens=context, continuation_tokens=continuation, row_group=row_group)
    rows, counters = rows_of(config, *corpus)
    counters.pop("documents.policy_tokenizer_not_lossless", None)
    assert (rows, counters) == plain(config, *corpus)
    for row in rows:
        row["context"].decode()  # whole characters only
        assert row["target"] == row["continuation"][: row["token_lengths"][0]]
        assert sum(row["token_lengths"]) == len(row["continuation"])


def test_a_rule_on_the_grid_keeps_of_the_shards_what_it_keeps_of_the_sites(tmp_path: Path) -> None:
    """Scores are rounded up, never down onto a threshold that they exceed; a tie stays a tie."""
    examples_made = made(tmp_path)
    sites = examples_made.sites.filter(pc.equal(examples_made.sites["split"], "train"))
    table = pa.concat_tables(examples_made.tables("train", 256))
    assert table["site_id"].equals(sites["site_id"])
    for name in ("entropy", "nll"):
        exact_S, stored_S = sites[name].to_numpy(), table[name].to_numpy()
        assert {np.float32(tie) for tie in TIES} <= set(exact_S)
        for threshold in (0.0, 1.0, 1 + STEP, 1 + 2 * STEP, 1.25, 1.5):
            assert ((stored_S > threshold) == (exact_S > threshold)).all(), (name, threshold)
    by_hand = [1.0, 1 + STEP / 2, 1 + STEP, TIES[2], 0.0, 1e-6]
    stored = _round_up(pa.chunked_array([pa.array(by_hand, pa.float32())]))
    assert stored.to_pylist() == [1.0, 1 + STEP, 1 + STEP, 1 + 2 * STEP, 0.0, STEP]
