"""The proxy: a `transformers` causal LM whose uncertainty selects the sites, and its scores of documents.

Shape names: B windows of a batch, T tokens of a window or document, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.config import ScoreConfig
from pipeline.core.errors import UserError
from pipeline.core.progress import say
from pipeline.scoring.entropy import PositionScores, WriteLogits, copy_logits, score_hidden
from pipeline.scoring.tokens import CorpusTokenizer
from pipeline.scoring.windows import Window, WindowPlan, batches, plan_windows, windows

_SPARE_ROWS = 1024
"""Models round their vocabulary up (Qwen by up to 399 rows); more spare rows than this mean another tokenizer."""


@dataclass
class Proxy:
    """A loaded model. `hidden` maps ids [B, T] to what `write_logits` makes logits of."""

    hidden: Callable[[Tensor], Tensor]
    write_logits: WriteLogits
    vocab_size: int
    """Rows of the output matrix V; the tokenizer's ids are fewer."""
    limit: int | None
    """Most tokens the model sees at once (`max_position_embeddings`), BOS included."""
    bos_id: int | None
    device: torch.device
    most_tokens: int = sys.maxsize
    """Of a batch. Falls when memory runs out, and stays there for the rest of the process."""


def resolve_dtype(dtype: str) -> str:
    """What `proxy.dtype: auto` means on this machine."""
    if dtype != "auto":
        return dtype
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bf16 else "float32"


def load_proxy(folder: Path, tokenizer: CorpusTokenizer, dtype: str) -> Proxy:
    """Load a model from a folder: safetensors only, no remote code, on the accelerator if the machine has one.

    Raises:
        UserError: no safetensors, an architecture `transformers` does not know, weights that are missing, or a
            vocabulary that is not the tokenizer's.
    """
    if not any(folder.glob("*.safetensors")):
        pickled = "; its pickled weights are not read" if any(folder.glob("*.bin")) else ""
        raise UserError(f"no safetensors weights{pickled}", where=folder, mend="convert with `save_pretrained`")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, resolve_dtype(dtype)),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged folder raises whatever its reader (config, safetensors, torch) raises
        raise UserError(
            "not a causal language model that `transformers` can load", where=folder, mend=_first_line(error)
        ) from error
    model, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        absent = sorted(map(str, loading["missing_keys"] or loading["mismatched_keys"]))
        raise UserError(f"weights are missing or misshapen ({len(absent)}, first {absent[0]})", where=folder)
    _check_vocabulary(folder, model.get_input_embeddings().num_embeddings, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return as_proxy(model.to(device).eval(), tokenizer.bos_id)


def as_proxy(model: Any, bos_id: int | None) -> Proxy:
    """A `transformers` causal LM as a proxy.

    The output matrix is applied to tiles of the vocabulary where that gives the model's own logits. Some
    architectures do more after it (a soft cap, a scale); one comparison on a short input finds them, and their full
    logits are used.
    """
    body, output = model.base_model, model.get_output_embeddings()

    def hidden(ids_BT: Tensor) -> Tensor:
        return body(input_ids=ids_BT, use_cache=False).last_hidden_state

    def logits(ids_BT: Tensor) -> Tensor:
        return model(input_ids=ids_BT, use_cache=False).logits

    device = next(model.parameters()).device
    probe_BT = torch.arange(8, device=device)[None] % model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        whole_BTV = logits(probe_BT)
        separable = body is not model and isinstance(output, torch.nn.Linear)
        if separable:
            tolerance = 1e-5 if whole_BTV.dtype == torch.float32 else 1e-2
            separable = torch.allclose(output(hidden(probe_BT)), whole_BTV, rtol=tolerance, atol=tolerance)
    return Proxy(
        hidden=hidden if separable else logits,
        write_logits=output_matrix(output.weight, output.bias) if separable else copy_logits,
        vocab_size=whole_BTV.shape[-1],
        limit=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        bos_id=bos_id,
        device=device,
    )


def output_matrix(weight_VH: Tensor, bias_V: Tensor | None) -> WriteLogits:
    """Logits of hidden states by the output matrix, made in its own type."""

    def write(hidden_CH: Tensor, ids: slice, out: Tensor) -> None:
        if weight_VH.dtype == out.dtype:
            torch.mm(hidden_CH, weight_VH[ids].T, out=out)
        else:
            out.copy_(hidden_CH @ weight_VH[ids].T)
        if bias_V is not None:
            out += bias_V[ids]

    return write


def _check_vocabulary(folder: Path, rows: int, tokenizer: CorpusTokenizer) -> None:
    if tokenizer.vocab_size > rows or rows - tokenizer.vocab_size > _SPARE_ROWS:
        raise UserError(
            f"the model has {rows:,} token embeddings, the tokenizer {tokenizer.vocab_size:,} tokens",
            where=folder,
            mend="give the tokenizer this model was trained with (`proxy.tokenizer`)",
        )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# -------------------------------------------------------------------------------------------------- scoring


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
    while len(parts) < len(todo):
        budget = min(config.batch_tokens, proxy.most_tokens)
        try:
            for batch in batches([w for w in todo if w not in parts], budget, bos=bos):
                parts |= _score_batch(proxy, batch, documents, names, config)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"a window of {batch[0].stop - batch[0].start:,} tokens does not fit in memory",
                    where=f"document {names[batch[0].document]}",
                    mend="lower `score.window`",
                ) from error
            proxy.most_tokens = max(w.stop - w.start + bos for w in batch) * len(batch) // 2
            say(f"score        out of memory: {proxy.most_tokens:,} tokens a batch from here (`score.batch_tokens`)")
    by_document: list[list[PositionScores]] = [[] for _ in documents]
    for window in todo:
        by_document[window.document].append(parts[window])
    nothing = _no_scores(config, proxy.vocab_size)
    return [PositionScores.concatenate(found) if found else nothing for found in by_document]


def _score_batch(
    proxy: Proxy,
    batch: Sequence[Window],
    documents: Sequence[NDArray[np.int32]],
    names: Sequence[str],
    config: ScoreConfig,
) -> dict[Window, PositionScores]:
    bos = proxy.bos_id is not None
    hidden_BTH = proxy.hidden(_padded(batch, documents, proxy))
    # The last fed token of a window predicts its last position, the one before it the one before, …
    rows = [hidden_BTH[b, w.first - 1 - w.start + bos : w.stop - w.start + bos] for b, w in enumerate(batch)]
    targets = np.concatenate([documents[w.document][w.first : w.stop + 1] for w in batch])
    targets_T = torch.from_numpy(targets).long().to(proxy.device)
    scores = _scorer(proxy.device)(
        torch.cat(rows), proxy.write_logits, proxy.vocab_size, targets_T, config.top_k, with_top=config.store_top
    )
    parts, begin = {}, 0
    for window, row in zip(batch, rows, strict=True):
        parts[window] = scores.take(slice(begin, begin + len(row)))
        begin += len(row)
        if not torch.isfinite(parts[window].nll).all():
            raise UserError(
                "the proxy's output is NaN or infinite",
                where=f"document {names[window.document]}",
                mend="check its weights, or score with `proxy.dtype: float32`",
            )
    return parts


def _scorer(device: torch.device) -> Callable[..., PositionScores]:
    """`score_hidden`: the kernel for NVIDIA GPUs, plain PyTorch elsewhere and where Triton is not installed."""
    if device.type == "cuda" and torch.version.cuda and find_spec("triton"):
        from pipeline.scoring import entropy_triton

        return entropy_triton.score_hidden
    return score_hidden


def _padded(batch: Sequence[Window], documents: Sequence[NDArray[np.int32]], proxy: Proxy) -> Tensor:
    """Ids [B, T] of a batch: BOS in front, and on the right what fills a row up.

    A causal model's token sees none to its right, so no mask is needed, and without one attention takes its fastest
    way; windows of a batch are about as long, so there is next to nothing to fill up.
    """
    front = [] if proxy.bos_id is None else [proxy.bos_id]
    rows = [[*front, *documents[w.document][w.start : w.stop].tolist()] for w in batch]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=proxy.device)


def _out_of_memory(error: Exception) -> bool:
    """Whether an accelerator (`torch.OutOfMemoryError`) or the machine had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _no_scores(config: ScoreConfig, vocab_size: int) -> PositionScores:
    K = min(config.top_k, vocab_size) if config.store_top else 0
    empty, no_ids = torch.empty(0), torch.empty(0, dtype=torch.int32)
    return PositionScores(empty, empty, empty, no_ids, no_ids.view(0, K), empty.view(0, K))
