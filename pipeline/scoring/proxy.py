"""The proxy: a `transformers` causal LM whose uncertainty determines which positions become sites.

Shape names: B rows, T tokens, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.errors import UserError, first_line
from pipeline.core.hardware import torch_device
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring import packed
from pipeline.scoring.entropy import WriteLogits, copy_logits
from pipeline.scoring.head import equal_up_to_rounding, tiled_head

_SPARE_SHARE = 0.1
"""Largest share of unused embedding rows that is accepted if the model's folder has no tokenizer to compare with.

Models round their vocabulary up, by at most 2.3 % in the models we know (102,400 rows for 100,015 tokens). More unused
rows mean another tokenizer."""


@dataclass
class Proxy:
    """A loaded model."""

    hidden: Callable[..., Tensor]
    """(ids [B, T], lengths) → the hidden states that `write_logits` reads. If lengths are given, the only row holds so
    many sequences end to end, and none attends to another."""
    write_logits: WriteLogits
    vocab_size: int
    """V, the rows of the output matrix; the tokenizer may have fewer ids."""
    limit: int | None
    """Longest input in tokens (`max_position_embeddings`), BOS included; None: no limit."""
    bos_id: int | None
    device: torch.device
    packs: bool = False
    """Windows are packed end to end in one row; otherwise each has its own row, padded to the longest."""
    max_batch_tokens: int = sys.maxsize
    """Upper limit of tokens per batch. It is halved when memory runs out, and stays so for the rest of the process."""


def load_proxy(folder: Path, tokenizer: CorpusTokenizer, dtype: str) -> Proxy:
    """Load a model from a folder: safetensors only, no remote code, on the accelerator if the machine has one.

    Raises:
        UserError: no safetensors, an architecture that `transformers` does not know, missing weights, a vocabulary that
            is not the tokenizer's, or a model that attends to later tokens.
    """
    import transformers

    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged folder raises whatever its reader (config, safetensors, torch) raises
        raise UserError(
            "not a causal language model that `transformers` can load", where=folder, hint=first_line(error)
        ) from error
    model, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        absent = sorted(map(str, loading["missing_keys"] or loading["mismatched_keys"]))
        raise UserError(f"weights are missing or misshapen ({len(absent)}, first {absent[0]})", where=folder)
    proxy = as_proxy(model.to(torch_device()).eval(), tokenizer.bos_id)
    for rows in (model.get_input_embeddings().num_embeddings, proxy.vocab_size):
        _check_vocabulary(folder, rows, tokenizer)
    return proxy


@torch.inference_mode()
def as_proxy(model: Any, bos_id: int | None) -> Proxy:
    """Wrap a `transformers` causal LM as a proxy.

    Logits are computed one vocabulary tile at a time if that gives the model's own logits, and windows are packed if
    its attention supports that; a short input tests both. Otherwise the full logits, or padded rows, are used.

    Raises:
        UserError: the model attends to later tokens.
    """
    body = model.base_model

    def hidden(ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return body(input_ids=ids_BT, use_cache=False, **_packing(lengths, ids_BT.device)).last_hidden_state

    def logits(ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return model(input_ids=ids_BT, use_cache=False, **_packing(lengths, ids_BT.device)).logits

    limit, rows = _limit(model.config.get_text_config()), model.get_input_embeddings().num_embeddings
    probe_BT = torch.arange(min(8, limit or 8), device=model.device)[None] % rows
    write = None if body is model else tiled_head(model, hidden, probe_BT)
    proxy = Proxy(
        hidden=hidden if write else logits,
        write_logits=write or copy_logits,
        vocab_size=model.get_output_embeddings().out_features if write else logits(probe_BT).shape[-1],
        limit=limit,
        bos_id=bos_id,
        device=model.device,
    )
    other_BT = probe_BT.clone()
    other_BT[:, -1] = (other_BT[:, -1] + 1) % rows
    if not equal_up_to_rounding(proxy.hidden(probe_BT)[:, :-1], proxy.hidden(other_BT)[:, :-1]):
        raise UserError(
            "the model attends to later tokens", where=model.config.name_or_path, hint="choose a causal language model"
        )
    proxy.packs = model.device.type == "cpu" and _pack_on_cpu(model, proxy, probe_BT)
    return proxy


def _pack_on_cpu(model: Any, proxy: Proxy, probe_BT: Tensor) -> bool:
    """Give a model the attention of `packed.py` if it computes the same with it, and return whether it has it."""
    own = model.config._attn_implementation
    if own != "sdpa" or not packed.can_pack(model.config.get_text_config()):
        return False
    expected = proxy.hidden(probe_BT)
    model.set_attn_implementation(packed.NAME)
    if equal_up_to_rounding(expected, proxy.hidden(probe_BT)) and packs_exactly(proxy, probe_BT):
        return True
    model.set_attn_implementation(own)
    return False


def packs_exactly(proxy: Proxy, probe_BT: Tensor) -> bool:
    """Return whether two sequences packed end to end get the same result as each alone; recurrent layers mix them."""
    sizes = [probe_BT.shape[1] // 2, probe_BT.shape[1] - probe_BT.shape[1] // 2]
    alone = torch.cat([proxy.hidden(ids_BT) for ids_BT in probe_BT.split(sizes, 1)], 1)
    return equal_up_to_rounding(alone, proxy.hidden(probe_BT, sizes), rounding=0.05)


def _packing(lengths: Sequence[int] | None, device: torch.device) -> dict[str, Any]:
    """Return the arguments that describe packed sequences to a model: their positions, and where each begins and ends.

    The last is for `packed.py`. Attention of `transformers` sees the ends in the positions.
    """
    if lengths is None:
        return {}
    positions_1T = torch.cat([torch.arange(n) for n in lengths])[None]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return {"position_ids": on_device(positions_1T, device), "cu_seq_lens_q": on_device(ends, device)}


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device: from pinned memory, so that the copy does not wait for queued work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _limit(config: Any) -> int | None:
    """Return the longest input in tokens, or None if there is no limit.

    LongRoPE switches to other rotary frequencies for a whole batch as soon as one row is longer than the original
    training length, so inputs are never longer than that.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    own = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # for all layers, or per layer type
    limits = [part["original_max_position_embeddings"] for part in own if part.get("rope_type") == "longrope"]
    return min(limits, default=getattr(config, "max_position_embeddings", None))


def _check_vocabulary(folder: Path, rows: int, tokenizer: CorpusTokenizer) -> None:
    """Refuse a tokenizer whose tokens are not the model's.

    The number of rows proves little, because models round their vocabulary up. So the tokens are compared with those of
    the tokenizer in the model's folder, if there is one.

    Raises:
        UserError: the tokenizer has more ids than the model has rows, or other tokens.
    """
    counts = f"the model has {rows:,} token embeddings, the tokenizer {tokenizer.vocab_size:,} tokens"
    if tokenizer.text_size > rows:
        raise UserError(counts, where=folder, hint=_TRAINED_WITH)
    if not (folder / "tokenizer.json").is_file():
        if rows - tokenizer.vocab_size > _SPARE_SHARE * rows:
            hint = f"{_TRAINED_WITH}, or put its tokenizer.json into the model's folder"
            raise UserError(counts, where=folder, hint=hint)
        return
    own = CorpusTokenizer.load(folder)
    if own.digest == tokenizer.digest:
        return
    for token, (a, b) in enumerate(zip(own.token_bytes, tokenizer.token_bytes, strict=False)):
        if a != b and a and b:
            raise UserError(
                f"token {token} is {b!r:.40} in the tokenizer, but {a!r:.40} in the one of the model's folder",
                where=folder, hint=f"{_TRAINED_WITH}; if the one in the folder is wrong, remove it",
            )  # fmt: skip


_TRAINED_WITH = "use the tokenizer that this model was trained with (`proxy.tokenizer`)"
