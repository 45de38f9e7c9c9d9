"""Scores documents with a proxy: cut them into windows, batch the windows by length, score every position.

Shape names: B windows of a batch, T tokens of a window or document, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig
from pipeline.core.progress import log
from pipeline.scoring.entropy import PositionScores, score_hidden
from pipeline.scoring.proxy import Proxy, on_device
from pipeline.scoring.windows import Window, WindowPlan, batches, fed_tokens, plan_windows, windows


@torch.inference_mode()
def score_documents(
    proxy: Proxy, documents: Sequence[NDArray[np.int32]], names: Sequence[str], config: ScoreConfig
) -> list[PositionScores]:
    """Return the scores of every document's positions 1 … T−1 (position 0 has no context).

    Values do not depend on which windows share a batch, up to rounding; the same call gives the same bits. When memory
    runs out, the proxy continues with half the tokens per batch and logs it.

    Args:
        proxy: the model.
        documents: token ids [T] of each document, nothing added.
        names: names of the documents, for error messages.
        config: the windows, the batch size and `top_k`.

    Raises:
        UserError: NaN or infinite values in the model's output, or a window too large for the memory; the message
            names the document.
    """
    bos = proxy.bos_id is not None
    plan: WindowPlan = plan_windows(config, proxy.limit, bos=bos)
    pending = [window for d, ids in enumerate(documents) for window in windows(len(ids), plan, d)]
    parts: dict[Window, PositionScores] = {}
    batch = pending[:1]
    # Each pass starts over with the windows that have no scores yet: after an out-of-memory error, in smaller batches.
    while remaining := [window for window in pending if window not in parts]:
        budget = min(config.batch_tokens, proxy.max_batch_tokens)
        previous: _ScoredBatch | None = None
        try:
            for batch in batches(remaining, budget, bos=bos, packed=proxy.packs):
                scored = _score_batch(proxy, batch, documents, config)
                if previous:  # read back while the accelerator works on the current batch
                    parts |= _scores_by_window(previous, names)
                previous = scored
            assert previous
            parts |= _scores_by_window(previous, names)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"a window of {batch[0].stop - batch[0].start:,} tokens does not fit in memory",
                    where=f"document {names[batch[0].document]}",
                    hint="lower `score.window`",
                ) from error
            proxy.max_batch_tokens = fed_tokens(batch, bos=bos, packed=proxy.packs) // 2
            log(f"score        out of memory: now {proxy.max_batch_tokens:,} tokens per batch (`score.batch_tokens`)")
    by_document: list[list[PositionScores]] = [[] for _ in documents]
    for window in pending:
        by_document[window.document].append(parts[window])
    empty = _empty_scores(config, proxy.vocab_size)
    return [PositionScores.concatenate(found) if found else empty for found in by_document]


class _ScoredBatch(NamedTuple):
    """A batch and the scores of its positions, window after window."""

    batch: Sequence[Window]
    scores: PositionScores
    arrived: torch.cuda.Event | None
    """Recorded once the scores are on the CPU; None without an accelerator."""


def _score_batch(
    proxy: Proxy, batch: Sequence[Window], documents: Sequence[NDArray[np.int32]], config: ScoreConfig
) -> _ScoredBatch:
    """Score a batch.

    On an accelerator all work is queued asynchronously; it synchronises once, when `transformers` reads the positions.
    """
    front = [] if proxy.bos_id is None else [proxy.bos_id]
    fed = [[*front, *documents[w.document][w.start : w.stop].tolist()] for w in batch]
    # The last fed token of a window predicts its last position, the one before it the one before, …
    rows = [hidden_TH[w.first - w.stop - 1 :] for w, hidden_TH in zip(batch, _hidden(proxy, fed), strict=True)]
    targets = np.concatenate([documents[w.document][w.first : w.stop + 1] for w in batch])
    targets_T = on_device(torch.from_numpy(targets).long(), proxy.device)
    scores = score_hidden(
        torch.cat(rows), proxy.write_logits, proxy.vocab_size, targets_T, config.top_k, with_top=config.store_top
    ).to_cpu()
    arrived = torch.cuda.Event() if proxy.device.type == "cuda" else None
    if arrived:
        arrived.record()
    return _ScoredBatch(batch, scores, arrived)


def _scores_by_window(scored: _ScoredBatch, names: Sequence[str]) -> dict[Window, PositionScores]:
    """Wait for the scores of a batch and return them by window.

    Raises:
        UserError: a score is NaN or infinite.
    """
    batch, scores, arrived = scored
    if arrived:
        arrived.synchronize()
    parts, begin = {}, 0
    for window in batch:
        end = begin + window.stop + 1 - window.first
        parts[window] = scores.take(slice(begin, end))
        begin = end
    if not torch.isfinite(scores.nll).all():
        broken = next(window for window in batch if not torch.isfinite(parts[window].nll).all())
        raise UserError(
            "the proxy's output is NaN or infinite",
            where=f"document {names[broken.document]}",
            hint="check its weights, or score with `proxy.dtype: float32`",
        )
    return parts


def _hidden(proxy: Proxy, fed: Sequence[list[int]]) -> Sequence[Tensor]:
    """Return the hidden states [T, H] of every window's ids.

    Padding is on the right, which a causal model's tokens do not attend to. So no mask is needed, and attention
    without a mask uses its fastest kernel. Windows of a batch are about equally long, so there is hardly any padding.
    """
    lengths = [len(ids) for ids in fed]
    if proxy.packs:
        ids_1T = on_device(torch.tensor([list(chain(*fed))]), proxy.device)
        return proxy.hidden(ids_1T, lengths)[0].split(lengths)
    width = max(lengths)
    ids_BT = on_device(torch.tensor([ids + [0] * (width - len(ids)) for ids in fed]), proxy.device)
    return [hidden_TH[:length] for hidden_TH, length in zip(proxy.hidden(ids_BT), lengths, strict=True)]


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the accelerator or the machine ran out of memory."""
    # Allocations on the CPU and in cuBLAS fail with a plain RuntimeError.
    messages = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in messages)


def _empty_scores(config: ScoreConfig, vocab_size: int) -> PositionScores:
    K = min(config.top_k, vocab_size) if config.store_top else 0
    empty, no_ids = torch.empty(0), torch.empty(0, dtype=torch.int32)
    return PositionScores(empty, empty, empty, no_ids, no_ids.view(0, K), empty.view(0, K))
