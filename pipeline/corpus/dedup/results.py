"""Matches: training documents that nearly duplicate another document, or overlap with an evaluation set.

Memory holds the documents that are suspects, of which an ordinary corpus has few, and of the others one byte. Shape
names: N candidates, S suspects, M matches, B band keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.corpus import CorpusConfig, NearDuplicatesConfig
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_batches, read_table
from pipeline.corpus.dedup.assignment import CODES, DUPLICATE, TRAIN, VALIDATION, Codes
from pipeline.corpus.dedup.candidates import AT_ONCE, Candidates, parts_by_key, read_bands, spans
from pipeline.corpus.dedup.near import PERMUTATIONS, band_rows, linked, near_duplicates
from pipeline.corpus.dedup.words import shingles, words

GROUP = 1 << 15
"""Suspects that are compared at once, if they are not all of one group of similar documents."""

Int64 = NDArray[np.int64]

OVERLAPS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("file_row", pa.int64(), nullable=False),
        pa.field("ngram", pa.string(), nullable=False),
    ]
)
"""Documents, by their row in a table of candidates, that share an n-gram with a record of an evaluation set."""

BANDS = pa.schema([pa.field("bands", pa.list_(pa.uint64()), nullable=False)])
"""The band keys of every candidate document; an empty list if it has no words."""

MATCHES = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("matched_doc_id", pa.string()),
        pa.field("matched_file", pa.string(), nullable=False),
        pa.field("matched_row", pa.int64(), nullable=False),
        pa.field("similarity", pa.float64()),
        pa.field("ngram", pa.string()),
    ]
)
"""A document that left training, why, and its match: another document (Jaccard `similarity` of their shingles) or
a record of an evaluation set (the first `ngram` of words that both have)."""


class Nears(NamedTuple):
    """The documents that leave as near-duplicates, in source order, and the most similar one that stays."""

    row_M: Int64
    other_M: Int64
    similarity_M: NDArray[np.float64]

    def between(self, of: slice) -> Nears:
        """Return some of them."""
        return Nears(self.row_M[of], self.other_M[of], self.similarity_M[of])


def mark_contaminated(code_N: Codes, overlaps: Sequence[InputFile], candidates: Candidates) -> pl.DataFrame:
    """Give the code of contamination to the training documents that overlap with an evaluation set.

    Args:
        code_N: the code of each candidate.
        overlaps: `OVERLAPS` of every table of candidates; empty if none are looked for.
        candidates: the candidates.

    Returns:
        The first overlap of each: the columns of `OVERLAPS`, with `row` counted over all candidates.
    """
    found = [pl.DataFrame(pl.from_arrow(OVERLAPS.empty_table()))]
    for file, here in zip(overlaps, candidates.spans(), strict=bool(overlaps)):
        frame = pl.DataFrame(pl.from_arrow(read_table(file))).with_columns(pl.col("row") + here.start)
        frame = frame.unique("row", keep="first", maintain_order=True).sort("row")
        found.append(frame.filter(pl.Series(code_N[frame["row"].to_numpy()] == TRAIN, dtype=pl.Boolean)))
    overlapping = pl.concat(found)
    code_N[overlapping["row"].to_numpy()] = CODES.index("contaminated")
    return overlapping


def mark_near_duplicates(
    code_N: Codes,
    candidates: Candidates,
    bands: Sequence[InputFile],
    documents: Sequence[InputFile],
    rule: NearDuplicatesConfig,
    folder: Path,
) -> Nears:
    """Give their code to the training documents that nearly duplicate another one.

    Args:
        code_N: the code of each candidate; those that have left are not compared.
        candidates: the candidates.
        bands: `BANDS` of every table of candidates.
        documents: the tables of candidates, for the texts of suspects.
        rule: threshold, n, and whether training documents are compared with one another.
        folder: an empty folder for band keys and shingles.
    """
    key_BN, has_words_N = read_bands(bands, candidates, PERMUTATIONS // band_rows(rule.threshold), folder)
    row_S, group_S = _groups(key_BN, has_words_N, code_N, rule.within_training, folder)
    shingles_of = _Shingles(row_S, candidates, documents, rule.words, folder / "shingles")
    parts = [_compare(number_P, row_S, key_BN, code_N, candidates, rule, shingles_of) for number_P in _batches(group_S)]
    row_M, other_M, similarity_M = (
        np.concatenate([np.zeros(0, dtype), *(part[column] for part in parts)])
        for column, dtype in enumerate((np.int64, np.int64, np.float64))
    )
    order = np.argsort(row_M)
    nears = Nears(row_M[order], other_M[order], similarity_M[order])
    of_validation = code_N[nears.other_M] == VALIDATION
    code_N[nears.row_M] = np.where(of_validation, *(CODES.index(near_reason(value)) for value in (True, False)))
    return nears


def _groups(
    key_BN: NDArray[np.uint64], has_words_N: NDArray[np.bool_], code_N: Codes, within_training: bool, scratch: Path
) -> tuple[Int64, Int64]:
    """Return the suspects [S], and the group of each: two that are to be compared are in one group.

    A suspect shares a band key with a document that it is to be compared with. Groups are joined band by band.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    suspect_N, pairs = np.zeros(len(code_N), bool), []
    for key_N in key_BN:
        found: list[tuple[Int64, Int64]] = []
        for row_P in parts_by_key(key_N, scratch, AT_ONCE):
            row_P = row_P[has_words_N[row_P] & (code_N[row_P] < DUPLICATE)]
            first, other = linked(key_N[row_P], code_N[row_P] == VALIDATION, within_training)
            found.append((row_P[first], row_P[other]))
        firsts, others = (np.concatenate(column) for column in zip(*found, strict=True))
        suspect_N[firsts] = suspect_N[others] = True
        pairs.append((firsts, others))
    row_S = np.flatnonzero(suspect_N)
    group_S = np.arange(len(row_S))
    for ends in pairs if len(row_S) else ():
        first, other = (group_S[np.searchsorted(row_S, end)] for end in ends)
        joined = coo_array((np.ones(len(first), bool), (first, other)), shape=(len(row_S), len(row_S)))
        group_S = connected_components(joined, directed=False)[1][group_S]
    return row_S, group_S


def _batches(group_S: Int64) -> Iterator[Int64]:
    """Yield the numbers of suspects in batches of whole groups, of `GROUP` suspects where groups are smaller."""
    order = np.argsort(group_S, kind="stable")
    ends = np.flatnonzero(np.diff(group_S[order], append=-1)) + 1
    begin = 0
    for end in ends.tolist():
        if end - begin >= GROUP or end == len(order):
            yield np.sort(order[begin:end])
            begin = end


def _compare(
    number_P: Int64,
    row_S: Int64,
    key_BN: NDArray[np.uint64],
    code_N: Codes,
    candidates: Candidates,
    rule: NearDuplicatesConfig,
    shingles_of: _Shingles,
) -> Nears:
    """Return which suspects of a batch leave."""
    row_P = row_S[number_P]
    held_out_P = code_N[row_P] == VALIDATION
    # By doc_id, a hash of the text: which of two near-duplicates stays does not depend on their order in the source.
    by_id = np.lexsort((candidates.key_N2[row_P, 1], candidates.key_N2[row_P, 0]))
    order = by_id[~held_out_P[by_id]].tolist()
    found = near_duplicates(key_BN[:, row_P].T, held_out_P, order, rule, lambda n: shingles_of[int(number_P[n])])
    return Nears(
        row_P[[near.row for near in found]],
        row_P[[near.other for near in found]],
        np.array([near.similarity for near in found], np.float64),
    )


class _Shingles:
    """The shingle sets of all suspects, in a file that is mapped into memory."""

    def __init__(
        self, row_S: Int64, candidates: Candidates, documents: Sequence[InputFile], n: int, path: Path
    ) -> None:
        begins = [0]
        with path.open("wb") as file:
            for table, here in zip(documents, candidates.spans(), strict=True):
                own = row_S[np.searchsorted(row_S, here.start) : np.searchsorted(row_S, here.stop)] - here.start
                for text in _texts(table, own):
                    found = shingles(words(text), n)
                    file.write(found.tobytes())
                    begins.append(begins[-1] + len(found))
        self._begins = np.array(begins)
        self._all = np.memmap(path, np.uint64, "r") if begins[-1] else np.zeros(0, np.uint64)

    def __getitem__(self, number: int) -> NDArray[np.uint64]:
        return self._all[self._begins[number] : self._begins[number + 1]]


def _texts(table: InputFile, row_S: Int64) -> Iterator[str]:
    """Yield the texts of some rows, in order; of a table without any nothing is read."""
    begin = 0
    for batch in read_batches(table, ["text"]) if len(row_S) else ():
        first, last = np.searchsorted(row_S, [begin, begin + len(batch)])
        yield from batch["text"].take(pa.array(row_S[first:last] - begin)).to_pylist()
        begin += len(batch)


def match_tables(
    overlapping: pl.DataFrame, nears: Nears | None, code_N: Codes, candidates: Candidates
) -> Iterator[pa.Table]:
    """Yield the rows of `MATCHES` in source order, a table of bounded size at a time."""
    nears = nears or Nears(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for span in spans(len(code_N), AT_ONCE):
        here = overlapping.filter(pl.col("row").is_between(span.start, span.stop - 1))
        of = slice(*np.searchsorted(nears.row_M, [span.start, span.stop]))
        frames = [_contaminated(here, candidates), _near(nears.between(of), code_N, candidates)]
        yield pl.concat(frames).sort("row").select(MATCHES.names).to_arrow().cast(MATCHES)


def _contaminated(overlapping: pl.DataFrame, candidates: Candidates) -> pl.DataFrame:
    return candidates.origin(overlapping["row"].to_numpy()).with_columns(
        reason=pl.lit("contaminated"),
        matched_doc_id=pl.lit(None, pl.String),
        matched_file=overlapping["file"],
        matched_row=overlapping["file_row"],
        similarity=pl.lit(None, pl.Float64),
        ngram=overlapping["ngram"],
        row=overlapping["row"],
    )


def _near(nears: Nears, code_N: Codes, candidates: Candidates) -> pl.DataFrame:
    other = candidates.origin(nears.other_M)
    return candidates.origin(nears.row_M).with_columns(
        reason=pl.Series([CODES[code] for code in code_N[nears.row_M]], dtype=pl.String),
        matched_doc_id=other["doc_id"],
        matched_file=other["source_file"],
        matched_row=other["source_row"],
        similarity=pl.Series(nears.similarity_M),
        ngram=pl.lit(None, pl.String),
        row=pl.Series(nears.row_M),
    )


def near_reason(of_validation: bool) -> str:
    """Return the reason for which a near-duplicate leaves."""
    return "near_duplicate_of_validation" if of_validation else "near_duplicate"


def reasons(config: CorpusConfig) -> list[str]:
    """Return the reasons that this configuration can give, which are counted even if zero."""
    near = config.near_duplicates
    looked_for = {
        "duplicate": True,
        "not_sampled": config.sample is not None,
        "contaminated": bool(config.decontaminate),
        near_reason(True): near is not None,
        near_reason(False): near is not None and near.within_training,
    }
    return [reason for reason, enabled in looked_for.items() if enabled]
