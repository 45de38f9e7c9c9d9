"""Documents through a proxy: windows in, batches by length, scores of every position out.

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
    """Scores of every document's positions 1 … T−1 (position 0 has no context).

    The values do not depend on what shares a batch, up to rounding; the same call gives the same bits. When memory
    runs out, this proxy goes on with half the tokens a batch, and says so.

    Args:
        proxy: the model.
        documents: token ids [T] of each document, nothing added.
        names: of the documents, for errors.
        config: windows, batches, top_k.

    Raises:
        UserError: NaN or infinite values in the model's output, or a window too large for the memory; the message
            names the document.
    """
    bos = proxy.bos_id is not None
    plan: WindowPlan = plan_windows(config, proxy.limit, bos=bos)
    todo = [window for d, ids in enumerate(documents) for window in windows(len(ids), plan, d)]
    parts: dict[Window, PositionScores] = {}
    batch = todo[:1]
    while left := [window for window in todo if window not in parts]:
        budget = min(config.batch_tokens, proxy.max_batch_tokens)
        before: _Scored | None = None
        try:
            for batch in batches(left, budget, bos=bos, packed=proxy.packs):
                scored = _score_batch(proxy, batch, documents, config)
                if before:  # is looked at while an accelerator works on this one
                    parts |= _parts(before, names)
                before = scored
            assert before
            parts |= _parts(before, names)
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
    for window in todo:
        by_document[window.document].append(parts[window])
    nothing = _no_scores(config, proxy.vocab_size)
    return [PositionScores.concatenate(found) if found else nothing for found in by_document]


class _Scored(NamedTuple):
    """A batch, and the scores of its positions, window after window."""

    batch: Sequence[Window]
    scores: PositionScores
    arrived: torch.cuda.Event | None
    """When the scores are there, if they come from an accelerator."""


def _score_batch(
    proxy: Proxy, batch: Sequence[Window], documents: Sequence[NDArray[np.int32]], config: ScoreConfig
) -> _Scored:
    """On an accelerator everything is only asked for; it waits once, for `transformers` to look at its positions."""
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
    return _Scored(batch, scores, arrived)


def _parts(scored: _Scored, names: Sequence[str]) -> dict[Window, PositionScores]:
    """The scores of a batch by window."""
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
    """Hidden states [T, H] of every window's ids.

    Padding stands on the right, where a causal model's tokens do not look, so no mask is needed, and without one
    attention takes its fastest way; windows of a batch are about as long, so there is next to nothing to fill up.
    """
    lengths = [len(ids) for ids in fed]
    if proxy.packs:
        ids_1T = on_device(torch.tensor([list(chain(*fed))]), proxy.device)
        return proxy.hidden(ids_1T, lengths)[0].split(lengths)
    width = max(lengths)
    ids_BT = on_device(torch.tensor([ids + [0] * (width - len(ids)) for ids in fed]), proxy.device)
    return [hidden_TH[:length] for hidden_TH, length in zip(proxy.hidden(ids_BT), lengths, strict=True)]


def _out_of_memory(error: Exception) -> bool:
    """Whether an accelerator (`torch.OutOfMemoryError`) or the machine had no memory left."""
    says = any(words in str(error) for words in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"))
    return says or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _no_scores(config: ScoreConfig, vocab_size: int) -> PositionScores:
    K = min(config.top_k, vocab_size) if config.store_top else 0
    empty, no_ids = torch.empty(0), torch.empty(0, dtype=torch.int32)
    return PositionScores(empty, empty, empty, no_ids, no_ids.view(0, K), empty.view(0, K))
