"""Difficulty of held-out sites by a model of the user's choice.

The paper's bands come from another, larger model than the one that selects (arXiv 2506.08007, section 4.2: 14B instead
of 1.5B), so that what is called hard is not what the selection happened to find hard.

Shape names: N sites, B sites of a batch, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.entropy import score_hidden
from pipeline.scoring.proxy import Proxy
from pipeline.shards.reader import Site


@torch.inference_mode()
def with_entropy_of(
    proxy: Proxy,
    tokenizer: CorpusTokenizer,
    sites_N: Sequence[Site],
    *,
    top_k: int,
    batch: int,
    advance: Callable[[int, int], None],
) -> list[Site]:
    """The sites with the entropy (nats, over the `top_k` most likely tokens renormalised) of the model's next token.

    Contexts are cut into the model's own tokens; of one that is longer than the model takes, the end is read.

    Args:
        proxy: the model.
        tokenizer: its tokenizer.
        sites_N: where.
        top_k: as for the scores that select.
        batch: sites read at once: memory, not results.
        advance: told of progress, sites and tokens.
    """
    front = [] if proxy.bos_id is None else [proxy.bos_id]
    room = None if proxy.limit is None else proxy.limit - len(front)
    encoded = tokenizer.encode_batch([site.context.decode("utf-8", errors="replace") for site in sites_N])
    contexts = [[*front, *(ids if room is None else ids[-room:]).tolist()] for ids in encoded]
    by_length = sorted(range(len(sites_N)), key=lambda i: len(contexts[i]))
    entropy: dict[int, float] = {}
    for start in range(0, len(by_length), batch):
        chosen = by_length[start : start + batch]
        rows = [contexts[i] for i in chosen]
        hidden_BH = _last_hidden(proxy, rows)
        targets_B = torch.zeros(len(chosen), dtype=torch.long, device=proxy.device)  # asked for, but not used
        scores = score_hidden(hidden_BH, proxy.write_logits, proxy.vocab_size, targets_B, top_k)
        entropy.update(zip(chosen, scores.entropy.tolist(), strict=True))
        advance(len(chosen), sum(map(len, rows)))
    return [replace(site, entropy=entropy[i]) for i, site in enumerate(sites_N)]


def _last_hidden(proxy: Proxy, rows: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states [B, H] after each row; what stands to the right of its end, it does not see."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=proxy.device)
    last_B = torch.tensor([len(row) - 1 for row in rows], device=proxy.device)
    return proxy.hidden(ids_BT)[torch.arange(len(rows), device=proxy.device), last_B]
