"""Documents and scores made by hand, in the schemas the stages publish."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.corpus.documents import DOCUMENTS, doc_id
from pipeline.scoring.table import SCORES


def documents_of(texts: Sequence[str], splits: Sequence[str] | None = None) -> pa.Table:
    """The documents table of some texts, all of them training documents unless `splits` says otherwise."""
    rows = [
        {
            "doc_id": doc_id(text),
            "text": text,
            "split": splits[i] if splits else "train",
            "fields": [],
            "source_file": "texts",
            "source_row": i,
            "meta": "{}",
        }
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def scores_of(
    documents: pa.Table,
    ends: Sequence[Sequence[int]],
    entropies: Sequence[Sequence[float | None]],
    fields: Sequence[Sequence[str]] | None = None,
    reference: Sequence[Sequence[float | None]] | None = None,
) -> pa.Table:
    """The scores table of documents cut at `ends`; the other scores are simple functions of the entropy.

    A reference model's losses are none, or those of `reference`.
    """
    rows = []
    for i, row in enumerate(documents.select(["doc_id", "split"]).to_pylist()):
        entropy = entropies[i]
        assert len(ends[i]) == len(entropy)
        rows.append(
            {
                **row,
                "token_ids": list(range(len(entropy))),
                "token_ends": list(ends[i]),
                "field": list(fields[i]) if fields else [""] * len(entropy),
                "entropy": list(entropy),
                "entropy_partial": [None if e is None else e / 2 for e in entropy],
                "nll": [None if e is None else e * 2 for e in entropy],
                "rank": [None if e is None else int(e * 8) for e in entropy],
                "reference_nll": list(reference[i]) if reference else [None] * len(entropy),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORES)
