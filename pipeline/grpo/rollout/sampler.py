"""The built-in sampler: plain PyTorch over any decoder of `transformers`, with its own inference copy of the policy.

A context is read once for its G responses, and if the model's attention allows (`prefix_attention.py`) its keys and
values are also stored once; finished rows leave the batch (`decoding.py`). A response is a function of
(weights, prompt, seed): its noise does not depend on the other rows of the batch, on their order, or on the number of
ranks.

Shape names: P prompts, G responses per prompt, R = P·G rows, W width of the left-padded contexts, H key-value heads,
D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.model.prefix_attention import can_share
from pipeline.grpo.rollout.decoding import (
    Keyed,
    Layers,
    ReadContexts,
    Repeated,
    Shared,
    contexts_by_modules,
    pad_left,
    token_by_modules,
)
from pipeline.grpo.rollout.fused_decoder import FusedDecoder, can_fuse
from pipeline.grpo.rollout.positions import must_fit
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.rollout.token_sampling import SamplingParams
from pipeline.grpo.types import NextToken, Response, SamplingRequest
from pipeline.scoring.rotary import fix_rotary

Rows = Callable[[Layers, Tensor, int, int], Shared | Repeated]
"""Keys and values of contexts, their mask [P, W], G, max_new_tokens → the rows to decode after them."""


class Sampler:
    """Samples responses from a copy of the policy that `load_weights` keeps current.

    Args:
        model: a causal language model of `transformers` with full or sliding-window attention.
        tokenizer: the policy's tokenizer, for the bytes of a response.
        eos_ids: ids that end a response.
        batch_rows: responses decoded at once: memory, not results.
        prefill_tokens: context tokens read at once: memory, not results.
        longest: maximum tokens of a prompt and its response that the model was loaded for, if it is limited to them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: CorpusTokenizer,
        eos_ids: Iterable[int],
        *,
        batch_rows: int = 1024,
        prefill_tokens: int = 16384,
        longest: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.eos_ids = frozenset(eos_ids)
        self._tokenizer = tokenizer
        self._batch_rows, self._prefill_tokens, self._longest = batch_rows, prefill_tokens, longest
        self._read, self._rows = _choose_decoding(model)
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            raise UserError(
                "the built-in sampler supports only models with attention layers",
                where=f"{type(model).__name__} has {', '.join(sorted(kinds))}",
                hint="choose another policy",
            )

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: CorpusTokenizer,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        batch_rows: int = 1024,
        longest: int | None = None,
    ) -> Sampler:
        """Load a sampler from a `transformers` folder, whose files name the tokens that end a response.

        Args:
            folder: the policy's folder.
            tokenizer: the policy's tokenizer.
            dtype: dtype of the weights.
            device: device to sample on.
            batch_rows: responses decoded at once.
            longest: maximum tokens of a prompt and its response, as for `fix_rotary`.

        Raises:
            UserError: the policy's responses would depend on the other responses in the batch.
        """
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        fixed = fix_rotary(model, longest)
        torch.nn.Module.to(model, device)
        ends, longest = response_ends(folder, tokenizer), longest if fixed else None
        return cls(model, tokenizer, ends.ids, batch_rows=batch_rows, longest=longest)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights by their `transformers` names. A tied output head follows its embedding.

        Raises:
            ValueError: a parameter is missing.
            KeyError: a parameter is not one of the model's.
        """
        own = dict(self.model.named_parameters())  # tied parameters appear once, under their first name
        aliases = set(dict(self.model.named_parameters(remove_duplicate=False))) - set(own)
        with torch.no_grad():
            for name, tensor in weights:
                if name not in aliases:
                    own.pop(name).copy_(tensor)
        if own:
            raise ValueError(f"missing weights: {', '.join(own)}")

    @torch.inference_mode()
    def sample(self, request: SamplingRequest) -> list[Response]:
        """Sample the P·G responses, in the order of the request's seeds.

        Raises:
            UserError: a prompt and its response may exceed the length the model was loaded for, or its positions.
        """
        prompts, group_size, seeds = request.prompts, request.group_size, request.seeds
        most = max(map(len, prompts), default=0) + request.max_new_tokens
        if self._longest is not None and most > self._longest:
            raise UserError(
                f"a prompt and its response may have {most:,} tokens, more than the {self._longest:,} that the "
                "policy's rotary frequencies were fixed for",
                where=type(self.model).__name__,
                hint="raise `materialize.max_context_tokens`, or lower `rollout.max_new_tokens`",
            )
        must_fit(self.model.config, max(map(len, prompts), default=0), request.max_new_tokens)
        responses: dict[int, Response] = {}
        by_length = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))  # keeps padding small
        for start in range(0, len(prompts), width := max(1, self._batch_rows // group_size)):
            chosen = by_length[start : start + width]
            rows = [p * group_size + g for p in chosen for g in range(group_size)]
            seeds_R = np.array([seeds[row] for row in rows], dtype=np.uint64)
            params = SamplingParams(seeds_R, request.temperature, request.max_new_tokens, self.eos_ids)
            decoded = self._decode([prompts[p] for p in chosen], group_size, params)
            responses.update(zip(rows, decoded, strict=True))
        return [responses[row] for row in range(len(seeds))]

    @torch.inference_mode()
    def next_tokens(self, contexts: Sequence[Sequence[int]]) -> list[NextToken]:
        """Return the distribution of the next token after each of P contexts, without sampling a response.

        Args:
            contexts: token ids, not empty, including the beginning-of-sequence token if the model expects one.
        """
        found: dict[int, NextToken] = {}
        for chosen, logits_PV in self._next(contexts):
            for p, logits_V in zip(chosen, logits_PV, strict=True):
                found[p] = _next_token(logits_V)
        return [found[p] for p in range(len(contexts))]

    @torch.inference_mode()
    def next_logprobs(self, contexts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probabilities (nats, temperature 1) of given next tokens after each of P contexts.

        Args:
            contexts: as for `next_tokens`.
            ids: the next tokens to look up, for each context.
        """
        found: list[list[float]] = [[]] * len(contexts)
        for chosen, logits_PV in self._next(contexts):
            for p, logprobs_V in zip(chosen, logits_PV.float().log_softmax(dim=-1), strict=True):
                found[p] = logprobs_V[list(ids[p])].tolist()
        return found

    def _next(self, contexts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield indices of some contexts with the logits [P, V] after them, until all contexts are read."""
        by_length = sorted(range(len(contexts)), key=lambda p: len(contexts[p]))
        for chosen in _chunks(by_length, [len(context) for context in contexts], self._prefill_tokens):
            yield chosen, self._read([contexts[p] for p in chosen], len(contexts[chosen[-1]]), None)

    def close(self) -> None:
        """Do nothing, because the model is plain memory."""

    def _decode(self, prompts: list[Sequence[int]], group_size: int, params: SamplingParams) -> list[Response]:
        """Decode the responses of one batch, prompt by prompt."""
        device = self.model.device
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        layers, logits = [], []
        for chosen in _chunks(range(len(prompts)), [width] * len(prompts), self._prefill_tokens):
            part: Keyed = []
            logits.append(self._read([prompts[p] for p in chosen], width, part))
            layers.append(part)
        logits_RV = torch.cat(logits).repeat_interleave(group_size, dim=0)
        rows = self._rows(layers, pad_left(prompts, width, device)[1], group_size, params.max_new_tokens)
        del layers, part, logits
        positions_R = torch.tensor(lengths, device=device).repeat_interleave(group_size)
        ids_RT, logprobs_RT = rows.decode(logits_RV, positions_R, params)

        end_RT: NDArray[np.bool_] = np.asarray(np.isin(ids_RT, sorted(params.eos_ids)))
        finished_R, length_R = np.any(end_RT, axis=1), np.argmax(end_RT, axis=1) + 1
        length_R[~finished_R] = params.max_new_tokens
        return [
            Response.of(ids_RT[r, :n].tolist(), logprobs_RT[r, :n].tolist(), finished, self._tokenizer.token_bytes)
            for r, (n, finished) in enumerate(zip(length_R.tolist(), finished_R.tolist(), strict=True))
        ]


def _next_token(logits_V: Tensor) -> NextToken:
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    first, second = logprobs_V.topk(2).values.tolist()
    entropy = torch.special.entr(logprobs_V.exp()).sum().item()
    return NextToken(int(logits_V.argmax()), entropy, first, first - second)


def _choose_decoding(model: PreTrainedModel) -> tuple[ReadContexts, Rows]:
    """Return the fastest functions that the model supports, for reading contexts and for decoding after them."""
    by_modules = partial(contexts_by_modules, model)
    if not can_share(model):
        return by_modules, partial(Repeated, model)
    if not can_fuse(model):
        return by_modules, partial(Shared, partial(token_by_modules, model))
    decoder = FusedDecoder(model)
    return decoder.read_contexts, partial(Shared, decoder)


def _chunks(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield consecutive parts of `order` whose padded size stays within `tokens`, with at least one item each."""
    part: list[int] = []
    longest = 0
    for item in order:
        if part and max(longest, lengths[item]) * (len(part) + 1) > tokens:
            yield part
            part, longest = [], 0
        part, longest = [*part, item], max(longest, lengths[item])
    if part:
        yield part
