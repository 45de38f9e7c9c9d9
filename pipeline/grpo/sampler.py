"""The built-in sampler: plain PyTorch over any decoder of `transformers`, with its own inference copy of the policy.

A context is read once for its G responses, and where the model's attention allows (`shared_attention.py`) its keys and
values are also held once; those of responses live in buffers that a step extends in place; rows that have ended leave
the batch. A response is a function of (weights, prompt, seed): its noise does not depend on which other rows are in the
batch, on their order, or on the number of ranks.

Shape names: P prompts, G responses a prompt, R = P·G rows, W width of the left-padded contexts, H key-value heads,
D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.core.errors import UserError
from pipeline.grpo.decoding import Repeated, Shared
from pipeline.grpo.shared_attention import can_share
from pipeline.grpo.types import Response
from pipeline.scoring.tokens import CorpusTokenizer
from pipeline.selection.keys import key_of, keys

UNKNOWN = "\ufffd".encode()
"""Bytes of an id that the tokenizer does not know (models have spare rows): such a response matches nothing."""


def rollout_seed(seed: int, step: int, site_id: str, sample: int) -> int:
    """The seed of one response.

    Example:
        >>> rollout_seed(0, 0, "d-1", 0) == rollout_seed(0, 0, "d-1", 1)
        False
    """
    return key_of("rollout", seed, step, site_id, sample)


def uniform(seeds_R: NDArray[np.uint64], index: int) -> NDArray[np.float32]:
    """The `index`-th draw [R] in [0, 1) of every seed's stream, in steps of 2⁻²⁴.

    Example:
        >>> [f"{u:.3f}" for u in uniform(np.array([1, 2], dtype=np.uint64), 0)]
        ['0.567', '0.591']
    """
    return (keys(seeds_R, np.array([index])) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def draw(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution, and its log-probability at that temperature.

    Temperature 0 takes the most likely token (of equals, the first); its log-probability is that at temperature 1.

    Returns:
        ids [R] int64, logprobs [R] float32.
    """
    logits_RV = logits_RV.float()
    if temperature not in (0, 1):
        logits_RV = logits_RV / temperature
    most_R1 = logits_RV.amax(dim=-1, keepdim=True)
    weights_RV = (logits_RV - most_R1).exp_()
    log_total_R = most_R1[:, 0] + weights_RV.sum(dim=-1).log_()
    if temperature == 0:
        ids_R = logits_RV.argmax(dim=-1)
    else:
        cumulative_RV = weights_RV.cumsum(dim=-1)
        total_R = cumulative_RV[:, -1]
        # At most (1 − 2⁻²⁴) of the total, which fp32 rounds below it: the first column above has a probability.
        point_R = uniform_R * total_R
        ids_R = torch.searchsorted(cumulative_RV, point_R[:, None], right=True)[:, 0]
    return ids_R, logits_RV.gather(1, ids_R[:, None])[:, 0] - log_total_R


class Sampler:
    """Samples responses from a copy of the policy that `load_weights` keeps current.

    Args:
        model: a causal language model of `transformers` with full or sliding-window attention.
        tokenizer: the policy's tokenizer, for the bytes of a response.
        eos_ids: ids that end a response.
        batch_rows: responses decoded at once: memory, not results.
        prefill_tokens: context tokens read at once: memory, not results.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: CorpusTokenizer,
        eos_ids: Iterable[int],
        *,
        batch_rows: int = 1024,
        prefill_tokens: int = 16384,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.eos_ids = frozenset(eos_ids)
        self._tokenizer = tokenizer
        self._batch_rows, self._prefill_tokens = batch_rows, prefill_tokens
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            raise UserError(
                "the built-in sampler knows models with attention layers only",
                where=f"{type(model).__name__} has {', '.join(sorted(kinds))}",
                mend="choose another policy",
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
    ) -> Sampler:
        """From a `transformers` folder; what ends a response is read from its generation configuration."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        torch.nn.Module.to(model, device)
        return cls(model, tokenizer, eos_ids_of(model), batch_rows=batch_rows)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights by their `transformers` names. A tied output head follows its embedding.

        Raises:
            ValueError: a parameter was not given, or one was given that the model does not have.
        """
        own = dict(self.model.named_parameters())  # tied parameters appear once, under their first name
        aliases = set(dict(self.model.named_parameters(remove_duplicate=False))) - set(own)
        with torch.no_grad():
            for name, tensor in weights:
                if name not in aliases:
                    own.pop(name).copy_(tensor)
        if own:
            raise ValueError(f"weights not given: {', '.join(own)}")

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Response]:
        """`group_size` responses to every prompt, prompt by prompt.

        Args:
            prompts: token ids of P prompts, each at least one token.
            group_size: G.
            temperature: 0 is greedy.
            max_new_tokens: room for a response; one that has not ended by then is unfinished.
            seeds: of the P·G responses (`rollout_seed`).

        Returns:
            P·G responses, in the order of `seeds`.
        """
        if len(seeds) != len(prompts) * group_size:
            raise ValueError(f"{len(prompts)} prompts of {group_size} need as many seeds, got {len(seeds)}")
        responses: dict[int, Response] = {}
        by_length = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))  # little padding
        for start in range(0, len(prompts), width := max(1, self._batch_rows // group_size)):
            chosen = by_length[start : start + width]
            rows = [p * group_size + g for p in chosen for g in range(group_size)]
            noise = np.array([seeds[row] for row in rows], dtype=np.uint64)
            made = self._decode([prompts[p] for p in chosen], group_size, temperature, max_new_tokens, noise)
            responses.update(zip(rows, made, strict=True))
        return [responses[row] for row in range(len(seeds))]

    @torch.inference_mode()
    def direct(self, contexts: Sequence[Sequence[int]]) -> list[int]:
        """The most likely next token after each of P contexts, read straight off the model.

        Args:
            contexts: token ids, with the token the model expects at a start where it expects one; none is empty.
        """
        best = [0] * len(contexts)
        for chosen, logits_PV in self._next(contexts):
            for p, token in zip(chosen, logits_PV.argmax(dim=-1).tolist(), strict=True):
                best[p] = token
        return best

    @torch.inference_mode()
    def next_logprobs(self, contexts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of given next tokens after each of P contexts.

        Args:
            contexts: as for `direct`.
            ids: of every context, the tokens asked for.
        """
        found: list[list[float]] = [[]] * len(contexts)
        for chosen, logits_PV in self._next(contexts):
            for p, logprobs_V in zip(chosen, logits_PV.float().log_softmax(dim=-1), strict=True):
                found[p] = logprobs_V[list(ids[p])].tolist()
        return found

    def _next(self, contexts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of some of the contexts and the logits [P, V] after them, until all were read."""
        by_length = sorted(range(len(contexts)), key=lambda p: len(contexts[p]))
        for chosen in _chunks(by_length, [len(context) for context in contexts], self._prefill_tokens):
            yield chosen, self._read([contexts[p] for p in chosen], len(contexts[chosen[-1]]), None)

    def close(self) -> None:
        """Nothing to release: the model is plain memory."""

    def _read(self, contexts: Sequence[Sequence[int]], width: int, cache: Cache | None) -> Tensor:
        """Run contexts, left-padded to `width`, into `cache`; logits [P, V] after their last tokens."""
        ids_PW, mask_PW = pad_left(contexts, width, self.model.device)
        positions_PW = (mask_PW.cumsum(dim=1) - 1).clamp_(min=0)
        output = self.model(
            input_ids=ids_PW,
            attention_mask=mask_PW,
            position_ids=positions_PW,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _decode(
        self, prompts: list[Sequence[int]], group_size: int, temperature: float, room: int, noise_R: NDArray[np.uint64]
    ) -> list[Response]:
        """Responses of one batch, prompt by prompt."""
        device = self.model.device
        lengths = [len(prompt) for prompt in prompts]
        width, rows = max(lengths), len(prompts) * group_size
        layers, logits = [], []
        for chosen in _chunks(range(len(prompts)), [width] * len(prompts), self._prefill_tokens):
            part: list[Any] = [DynamicLayer() for _ in range(self.model.config.num_hidden_layers)]
            logits.append(self._read([prompts[p] for p in chosen], width, Cache(layers=part)))
            layers.append([(layer.keys, layer.values) for layer in part])
        logits_RV = torch.cat(logits).repeat_interleave(group_size, dim=0)
        mask_PW = pad_left(prompts, width, device)[1]
        decoding = (Shared if can_share(self.model) else Repeated)(self.model, layers, mask_PW, group_size, room)
        del layers, part, logits
        positions_R = torch.tensor(lengths, device=device).repeat_interleave(group_size)

        ids_RT = np.zeros((rows, room), dtype=np.int64)
        logprobs_RT = np.zeros((rows, room), dtype=np.float32)
        length_R = np.zeros(rows, dtype=np.int64)
        finished_R = np.zeros(rows, dtype=bool)
        eos = np.array(sorted(self.eos_ids))
        live = np.arange(rows)  # rows that are in the batch; those that have ended leave a quarter at a time
        for t in range(room):
            noise = torch.from_numpy(uniform(noise_R[live], t)).to(device)
            ids_L, logprobs_L = draw(logits_RV, temperature, noise)
            ids, going = ids_L.cpu().numpy(), ~finished_R[live]
            writing = live[going]
            ids_RT[writing, t], logprobs_RT[writing, t] = ids[going], logprobs_L.cpu().numpy()[going]
            length_R[writing] += 1
            finished_R[writing] = np.isin(ids[going], eos)
            going = ~finished_R[live]
            if t + 1 == room or not going.any():
                break
            if going.sum() <= 0.75 * len(live):
                keep = torch.from_numpy(np.flatnonzero(going)).to(device)
                decoding.select(keep)
                ids_L, positions_R, live = ids_L[keep], positions_R[keep], live[going]
            logits_RV = decoding.step(ids_L, positions_R + t)
        return [
            self._response(ids_RT[r, :n].tolist(), logprobs_RT[r, :n].tolist(), bool(finished_R[r]))
            for r, n in enumerate(length_R.tolist())
        ]

    def _response(self, ids: list[int], logprobs: list[float], finished: bool) -> Response:
        spoken, known = ids[:-1] if finished else ids, self._tokenizer.token_bytes
        text = b"".join([known[i] if i < len(known) else UNKNOWN for i in spoken])
        return Response(tuple(ids), text, finished, tuple(logprobs))


def pad_left(rows: Sequence[Sequence[int]], width: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask [P, W] of rows that all end in the last column. The mask, not the padding's id, says what is real.

    Example:
        >>> pad_left([[5], [6, 7]], 2, "cpu")[1].tolist()
        [[False, True], [True, True]]
    """
    ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for ids_W, mask_W, row in zip(ids, mask, rows, strict=True):
        ids_W[width - len(row) :], mask_W[width - len(row) :] = row, True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def eos_ids_of(model: PreTrainedModel) -> frozenset[int]:
    """Ids that end a response, as the model's generation configuration has them.

    Raises:
        UserError: it names none, so that no response could ever finish.
    """
    named = model.generation_config.eos_token_id if model.generation_config else None
    ids = [named] if isinstance(named, int) else list(named or ())
    if not ids:
        raise UserError(
            "the policy names no end-of-sequence token",
            where=model.config._name_or_path,
            mend="set `eos_token_id` in its generation_config.json",
        )
    return frozenset(ids)


def _chunks(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Consecutive parts of `order` whose padded size stays within `tokens` (one item at least)."""
    part: list[int] = []
    longest = 0
    for item in order:
        if part and max(longest, lengths[item]) * (len(part) + 1) > tokens:
            yield part
            part, longest = [], 0
        part, longest = [*part, item], max(longest, lengths[item])
    if part:
        yield part
