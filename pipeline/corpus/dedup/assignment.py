"""Assignment of documents to splits and shards: the decisions that need the whole corpus at once.

They are one byte per candidate document, in source order. De-duplication comes before the split, so that no text can be
in both; near-duplicates of validation documents leave training after the split. Memory does not grow with the corpus.
Shape name: N candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.corpus import ValidationConfig
from pipeline.config.errors import IntegrityError
from pipeline.core.artifact import RUN_AGAIN, InputFile
from pipeline.corpus.dedup.candidates import AT_ONCE, doc_ids_of, keys_of, parts_by_key, spans

Codes = NDArray[np.uint8]

CODES = (
    "train",
    "validation",
    "duplicate",
    "contaminated",
    "near_duplicate_of_validation",
    "near_duplicate",
    "not_sampled",
)
"""What a candidate's byte means: its split, or the reason why it leaves."""

TRAIN, VALIDATION, DUPLICATE = range(3)
NOT_SAMPLED = CODES.index("not_sampled")
SPLIT = pa.array([*CODES[:DUPLICATE], *(None for _ in CODES[DUPLICATE:])], pa.string())
"""The split of each code, null for those that leave."""

CUTS = pa.schema(
    [
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
    ]
)
"""The candidates [start, stop) of each shard, and the hash of their codes."""


def assign(doc_ids: Sequence[str], held_out: Sequence[bool], rule: ValidationConfig, seed: int) -> list[str | None]:
    """Return the split of every document in memory, None where an earlier one has the same text.

    Args:
        doc_ids: [N] in source order.
        held_out: [N] whether its column or its file marks it as held out.
        rule: by column, by split, by fraction or by number of documents.
        seed: seed of the hash that chooses by fraction or number.

    Example:
        >>> a, b = "0" * 32, "1" * 32
        >>> assign([a, b, a], [False, False, False], ValidationConfig(documents=0), seed=0)
        ['train', 'train', None]
    """
    code_N, key_N2 = np.zeros(len(doc_ids), np.uint8), keys_of(doc_ids)
    mark_duplicates(code_N, key_N2)
    hold_out(code_N, key_N2, np.array(held_out, bool), rule, seed)
    split: list[str | None] = SPLIT.take(pa.array(code_N)).to_pylist()
    return split


def mark_duplicates(
    code_N: Codes, key_N2: NDArray[np.uint64], scratch: Path | None = None, at_once: int = AT_ONCE
) -> None:
    """Give every document the code DUPLICATE whose key an earlier one has.

    Args:
        code_N: the code of each document.
        key_N2: the halves of each doc_id.
        scratch: a folder for a file as `parts_by_key` needs it.
        at_once: about how many documents are sorted at once.
    """
    for row_P in parts_by_key(key_N2[:, 0], scratch, at_once):
        key_P2 = key_N2[row_P]
        order = np.lexsort((key_P2[:, 1], key_P2[:, 0]))  # stable, so of equal keys the first document comes first
        same = (key_P2[order[1:]] == key_P2[order[:-1]]).all(axis=1)
        code_N[row_P[order[1:][same]]] = DUPLICATE


def leave_out(code_N: Codes, key_N2: NDArray[np.uint64], share: float, seed: int, at_once: int = AT_ONCE) -> None:
    """Give the code NOT_SAMPLED to all but about `share` of the training documents. Arguments as for `assign`."""
    for span in spans(len(code_N), at_once):
        row_P = np.flatnonzero(code_N[span] == TRAIN) + span.start
        code_N[row_P[~is_below(_draws("sample", key_N2[row_P], seed), share)]] = NOT_SAMPLED


def is_sampled(doc_id: str, share: float | None, seed: int) -> bool:
    """Return whether `corpus.sample` keeps a document."""
    return share is None or bool(is_below(_draws("sample", keys_of([doc_id]), seed), share)[0])


def is_below(draw_N: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return which draws are in the lowest `share` of all 64-bit numbers."""
    return draw_N < int(share * 2**64)


def hold_out(
    code_N: Codes,
    key_N2: NDArray[np.uint64],
    held_out_N: NDArray[np.bool_],
    rule: ValidationConfig,
    seed: int,
    at_once: int = AT_ONCE,
) -> None:
    """Give the code VALIDATION to the training documents that the rule holds out. Arguments as for `assign`."""
    best = (np.zeros(0, np.uint64), np.zeros(0, np.int64))  # draws and rows of the documents with the least draws
    for span in spans(len(code_N), at_once):
        row_P = np.flatnonzero(code_N[span] == TRAIN) + span.start
        if rule.column is not None or rule.split is not None:
            code_N[row_P[held_out_N[row_P]]] = VALIDATION
        elif rule.fraction is not None:
            code_N[row_P[is_below(_draws("validation", key_N2[row_P], seed), rule.fraction)]] = VALIDATION
        elif rule.documents:
            draw = np.concatenate([best[0], _draws("validation", key_N2[row_P], seed)])
            row = np.concatenate([best[1], row_P])
            least = np.lexsort((row, draw))[: rule.documents]
            best = draw[least], row[least]
    code_N[best[1]] = VALIDATION


def _draws(purpose: str, key_N2: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return [N] numbers below 2^64, each from its doc_id and the seed alone, so that adding documents moves none."""
    draws = (hashlib.sha256(f"{purpose} {seed} {doc}".encode()).digest()[:8] for doc in doc_ids_of(key_N2))
    return np.frombuffer(b"".join(draws), ">u8").astype(np.uint64)


# ------------------------------------------------------------------------------------------------------- shards


def shard_starts(code_N: Codes, shard_documents: int, at_once: int = AT_ONCE) -> list[int]:
    """Return where shards begin: each has `shard_documents` documents that stay, with the duplicates between them.

    Example:
        >>> shard_starts(np.array([2, 0, 0, 2, 0], np.uint8), 2)
        [0, 4]
    """
    starts, before = [0], 0
    for span in spans(len(code_N), at_once):
        row_P = np.flatnonzero(code_N[span] < DUPLICATE) + span.start
        first = -before % shard_documents + (shard_documents if before == 0 else 0)
        starts += row_P[first::shard_documents].tolist()
        before += len(row_P)
    return starts


def cuts(code_N: Codes, starts: Sequence[int]) -> pa.Table:
    """Return the rows of `CUTS` of shards that begin at `starts`."""
    stops = [*starts[1:], len(code_N)]
    hashes = [_hash(code_N[start:stop].tobytes()) for start, stop in zip(starts, stops, strict=True)]
    return pa.table({"start": starts, "stop": stops, "hash": hashes}, schema=CUTS)


def read_codes(file: InputFile, start: int, stop: int, expected: str) -> Codes:
    """Return the codes of the candidates [start, stop), which is all that is read of the file.

    Raises:
        IntegrityError: they do not have the hash of their row of `CUTS`.
    """
    try:
        with file.path.open("rb") as codes:
            codes.seek(start)
            data = codes.read(stop - start)
    except FileNotFoundError:
        data = b""
    if _hash(data) != expected:
        raise IntegrityError(
            "published file is missing or was changed after the fact",
            where=file.path,
            hint=RUN_AGAIN,
        )
    return np.frombuffer(data, np.uint8)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def count_codes(code_N: Codes, at_once: int = AT_ONCE) -> dict[str, int]:
    """Return the number of documents by code."""
    counts = sum(
        (np.bincount(code_N[span], minlength=len(CODES)) for span in spans(len(code_N), at_once)),
        np.zeros(len(CODES), np.int64),
    )
    return dict(zip(CODES, counts.tolist(), strict=True))
