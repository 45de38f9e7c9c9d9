"""Turns sites into training examples: contexts, targets, continuations and token lengths in the policy's tokens.

All parts are slices of the documents' bytes, which lie end to end. Shape names: D documents, T policy tokens of all
documents, S sites, B bytes, L tokens of all continuations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.manifest import MaterializeConfig
from pipeline.core.artifact import Counters
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.text import TextBytes
from pipeline.shards.schema import SCORE_STEP, SHARDS, SPLITS, shards_schema

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class PolicyTokens:
    """The policy's tokens of all documents end to end; a document that does not tokenize losslessly has none."""

    starts_T: Int64
    ends_T: Int64
    """Offsets in the documents' bytes at which each token begins (`starts_T`) and ends."""
    first_D: Int64
    past_D: Int64
    """Document d has the tokens first_D[d]:past_D[d]."""
    lossless_D: Bool
    holds_added_D: Bool
    """True for documents that contain the text of one of the policy's added tokens."""


@dataclass(frozen=True)
class Cuts:
    """Offsets of each example's parts in the documents' bytes, and the tokens token_S:past_S of its continuation."""

    context_S: Int64
    site_S: Int64
    target_end_S: Int64
    continuation_end_S: Int64
    token_S: Int64
    past_S: Int64
    truncated_S: Bool


@dataclass(frozen=True)
class Examples:
    """A shard's training examples as slices; only `tables` copies bytes."""

    text: TextBytes
    tokens: PolicyTokens
    cuts: Cuts
    sites: pa.Table
    """The sites that are kept."""
    counters: Counters
    """`sites` = the sum of `dropped.<reason>` and `kept.<split>`; `documents`, and how many of them are
    `.holding_policy_added_tokens` and `.policy_tokenizer_not_lossless`; `context_truncated`."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the shards of these sites."""
        return shards_schema(self.sites.schema)

    def tables(self, split: str, row_group: int) -> Iterator[pa.Table]:
        """Yield the split's rows as tables of `schema` with `row_group` rows, made one at a time."""
        rows = np.flatnonzero(pc.equal(self.sites["split"], split).to_numpy())
        for begin in range(0, len(rows), row_group):
            yield self._table(rows[begin : begin + row_group])

    def _table(self, rows: Int64) -> pa.Table:
        site = self.cuts.site_S[rows]
        taken = self.sites.take(pa.array(rows))
        columns = {name: taken[name] for name in taken.column_names} | {
            "context": _gather(self.text, self.cuts.context_S[rows], site),
            "target": _gather(self.text, site, self.cuts.target_end_S[rows]),
            "continuation": _gather(self.text, site, self.cuts.continuation_end_S[rows]),
            "token_lengths": _token_lengths(self.tokens, self.cuts.token_S[rows], self.cuts.past_S[rows]),
            "entropy": _round_up(taken["entropy"]),
            "nll": _round_up(taken["nll"]),
            "context_truncated": pa.array(self.cuts.truncated_S[rows]),
        }
        return pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema)


def examples(config: MaterializeConfig, tokenizer: CorpusTokenizer, documents: pa.Table, sites: pa.Table) -> Examples:
    """Find the training example of each of a shard's sites.

    Args:
        config: lengths, in policy tokens.
        tokenizer: the policy's tokenizer.
        documents: columns `doc_id` and `text` of the shard's documents.
        sites: the shard's sites (`SITES`), in the order of `documents`, then by position.

    Raises:
        IntegrityError: the shard lacks the document of a site.
    """
    row_of_site = pc.index_in(sites["doc_id"], documents["doc_id"])
    if row_of_site.null_count:
        raise IntegrityError(
            "sites and documents are from different corpora", hint="delete the select folder and run again"
        )
    used, document_S = np.unique(row_of_site.to_numpy(), return_inverse=True)
    texts = documents["text"].take(pa.array(used))
    text = TextBytes.of(texts)
    tokens = policy_tokens(tokenizer, texts.to_pylist(), text)

    site_S = text.starts_D[document_S] + sites["byte_offset"].to_numpy()
    lossless_S = tokens.lossless_D[document_S]
    token_S = np.searchsorted(tokens.starts_T, site_S, side="right") - 1
    boundary_S = lossless_S & _begins_at(tokens, token_S, site_S, document_S)

    keep = np.flatnonzero(boundary_S)
    cuts = _cut(config, text, tokens, site_S[keep], token_S[keep], document_S[keep])
    kept = sites.take(pa.array(keep))
    counters = {
        "documents": len(used),
        "documents.holding_policy_added_tokens": int(tokens.holds_added_D.sum()),
        "documents.policy_tokenizer_not_lossless": int((~tokens.lossless_D).sum()),
        "sites": sites.num_rows,
        "dropped.policy_tokenizer_not_lossless": int((~lossless_S).sum()),
        "dropped.not_a_policy_boundary": int((lossless_S & ~boundary_S).sum()),
        "context_truncated": int(cuts.truncated_S.sum()),
    }
    for split in SPLITS:
        counters[f"kept.{split}"] = int(pc.equal(kept["split"], split).to_numpy().sum())
    return Examples(text, tokens, cuts, kept, counters)


def policy_tokens(tokenizer: CorpusTokenizer, texts: list[str], text: TextBytes) -> PolicyTokens:
    """Tokenize every document once. `text` holds the bytes of `texts`."""
    ids = tokenizer.encode_batch(texts)
    lossless_D = np.array(tokenizer.are_lossless(texts, ids), dtype=bool)
    used = [each if lossless else _NO_IDS for each, lossless in zip(ids, lossless_D, strict=True)]
    size_D = np.array([len(each) for each in used], dtype=np.int64)
    past_D = np.cumsum(size_D)
    ends_T = np.concatenate([_NO_TOKENS, *tokenizer.ends_of_each(used)])
    starts_T = np.concatenate([[0], ends_T])[:-1]
    starts_T[(past_D - size_D)[size_D > 0]] = 0
    at_T = np.repeat(text.starts_D, size_D)
    return PolicyTokens(
        starts_T=starts_T + at_T,
        ends_T=ends_T + at_T,
        first_D=past_D - size_D,
        past_D=past_D,
        lossless_D=lossless_D,
        holds_added_D=np.array([tokenizer.holds_added_token(text) for text in texts], dtype=bool),
    )


_NO_TOKENS = np.zeros(0, dtype=np.int64)
_NO_IDS = np.zeros(0, dtype=np.int32)


def _begins_at(tokens: PolicyTokens, token_S: Int64, site_S: Int64, document_S: Int64) -> Bool:
    """Return whether token_S, the last token that begins at or before a site, begins exactly there in its document."""
    if not len(tokens.starts_T):
        return np.zeros(len(site_S), dtype=bool)
    own = (tokens.first_D[document_S] <= token_S) & (token_S < tokens.past_D[document_S])
    return own & (tokens.starts_T[np.maximum(token_S, 0)] == site_S)


def _cut(
    config: MaterializeConfig, text: TextBytes, tokens: PolicyTokens, site_S: Int64, token_S: Int64, document_S: Int64
) -> Cuts:
    begin_S = tokens.first_D[document_S]
    context_token_S = np.maximum(begin_S, token_S - config.max_context_tokens)
    past_S = np.minimum(token_S + config.continuation_tokens, tokens.past_D[document_S])
    return Cuts(
        context_S=_next_character(text, tokens.starts_T[context_token_S]),
        site_S=site_S,
        target_end_S=tokens.ends_T[token_S],
        continuation_end_S=tokens.ends_T[past_S - 1],
        token_S=token_S,
        past_S=past_S,
        truncated_S=context_token_S > begin_S,
    )


def _next_character(text: TextBytes, at: Int64) -> Int64:
    """Return for each offset the first offset at or after it at which a character begins."""
    for _ in range(3):  # a UTF-8 character continues for at most three bytes
        at = at + text.inside_character(at)
    return at


def _gather(text: TextBytes, begin_S: Int64, end_S: Int64) -> pa.BinaryArray:
    """Return data_B[begin:end] of every row, copied by Arrow without creating a Python object per row."""
    size_S = end_S - begin_S
    offsets = np.concatenate([[0], np.cumsum(size_S)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise UserError("contexts of one row group exceed 2 GiB", hint="lower `materialize.row_group`")
    slices = pa.LargeListViewArray.from_arrays(pa.array(begin_S), pa.array(size_S), pa.array(text.data_B))
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(slices.flatten().to_numpy())]
    return pa.Array.from_buffers(pa.binary(), len(size_S), buffers)


def _round_up(scores: pa.ChunkedArray) -> pa.Array:
    """Round scores up to a multiple of `SCORE_STEP`, exact in fp32, which keeps x > t for every t on that grid."""
    step = np.float32(SCORE_STEP)
    return pa.array(np.ceil(scores.to_numpy() / step) * step)


def _token_lengths(tokens: PolicyTokens, token_S: Int64, past_S: Int64) -> pa.ListArray:
    """Return the byte lengths of tokens token:past of every row."""
    size_S = past_S - token_S
    offsets = np.concatenate([[0], np.cumsum(size_S)])
    token_L = np.arange(offsets[-1]) + np.repeat(token_S - offsets[:-1], size_S)
    length_L = tokens.ends_T[token_L] - tokens.starts_T[token_L]
    values = pa.array(length_L.astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values).cast(SHARDS.field("token_lengths").type)
