"""Difficulty of held-out sites according to a model of the user's choice.

The paper defines bands by a larger model than the one that selects sites (arXiv 2506.08007, section 4.2: 14B instead of
1.5B), so that a site is not called hard only because the selecting model found it hard.

Shape names: N sites, B sites in a batch, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config.manifest import ScoreConfig
from pipeline.config.recipe import Recipe
from pipeline.core.progress import Throughput, progress_bar
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.entropy import score_hidden
from pipeline.scoring.proxy import Proxy, load_proxy
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
    """Return the sites with the entropy of the model's next token, in nats.

    The entropy is over the `top_k` most likely tokens, renormalised. Contexts are tokenized by the model's own
    tokenizer and truncated on the left to the model's maximum length.

    Args:
        proxy: The model.
        tokenizer: Its tokenizer.
        sites_N: Sites to score.
        top_k: Number of tokens, as for the scores that select.
        batch: Sites per forward pass; it changes memory use, not results.
        advance: Progress callback `advance(sites, tokens)`.
    """
    front = [] if proxy.bos_id is None else [proxy.bos_id]
    room = None if proxy.limit is None else proxy.limit - len(front)
    encoded = tokenizer.encode_batch([site.context.decode("utf-8", errors="replace") for site in sites_N])
    contexts = [[*front, *(ids if room is None else ids[-room:]).tolist()] for ids in encoded]
    # Batches of similar lengths need little padding.
    by_length = sorted(range(len(sites_N)), key=lambda i: len(contexts[i]))
    entropy: dict[int, float] = {}
    for start in range(0, len(by_length), batch):
        chosen = by_length[start : start + batch]
        rows = [contexts[i] for i in chosen]
        hidden_BH = _last_hidden(proxy, rows)
        targets_B = torch.zeros(
            len(chosen), dtype=torch.long, device=proxy.device
        )  # required by `score_hidden`, not used here
        scores = score_hidden(hidden_BH, proxy.write_logits, proxy.vocab_size, targets_B, top_k)
        entropy.update(zip(chosen, scores.entropy.tolist(), strict=True))
        advance(len(chosen), sum(map(len, rows)))
    return [replace(site, entropy=entropy[i]) for i, site in enumerate(sites_N)]


def _last_hidden(proxy: Proxy, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the hidden states [B, H] at the last token of each row.

    Rows are padded on the right, which causal attention never sees.
    """
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=proxy.device)
    last_B = torch.tensor([len(row) - 1 for row in rows], device=proxy.device)
    return proxy.hidden(ids_BT)[torch.arange(len(rows), device=proxy.device), last_B]


def banded_by(folder: Path, sites: Sequence[Site], recipe: Recipe) -> list[Site]:
    """Return the sites with the entropy of the model in `folder`, instead of that of the proxy which selected them."""
    tokenizer = CorpusTokenizer.load(folder)
    proxy, top_k = load_proxy(folder, tokenizer, recipe.policy.dtype), ScoreConfig().top_k
    with progress_bar("bands", Throughput(len(sites), "tokens", steps="sites")) as advance:
        return with_entropy_of(proxy, tokenizer, sites, top_k=top_k, batch=recipe.rollout.batch_rows, advance=advance)
