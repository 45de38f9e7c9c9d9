"""Reward functions that other trainers call. Bundled with `pipeline/task` as `rpt_reward.py` of an export.

Standard library only, Python 3.8 or later. A trainer that passes text has decoded it: a prediction that ends inside a
character has become U+FFFD and earns 0, and special tokens and unknown ids may be lost. A trainer that passes token ids
(TRL) gets the reward of their bytes, as in `rpt train`.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence, Sized
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.task.extraction import TAGS
from pipeline.task.reward import Outcome, priced, response_bytes, score_response

POLICY_FILE = "policy.json"
"""File beside the exported module with the ids that end a response and the bytes of every token id."""

THINKING = TAGS
"""The form of responses. `rpt export` writes the recipe's here."""

TOKEN_PRICE = 0.0
"""The price of a token (`task.token_price`). `rpt export` writes the recipe's here."""


def ground_truth(continuation: bytes, token_lengths: Sequence[int]) -> str:
    """Return the ground truth of a response as JSON: the continuation (base64) and its tokens' byte lengths.

    Example:
        >>> ground_truth(b" 4 apples", [2, 7])
        '{"continuation": "IDQgYXBwbGVz", "token_lengths": [2, 7]}'
    """
    return json.dumps({"continuation": b64encode(continuation).decode(), "token_lengths": list(token_lengths)})


def judge(response: bytes | str, truth: str, finished: bool = True, tokens: int | None = None) -> Outcome:
    r"""Return the outcome of a response.

    Args:
        response: the response without the end-of-sequence token and without the given beginning (`task.prefill`), which
            is part of the prompt; text is encoded as UTF-8.
        truth: a `ground_truth`.
        finished: whether the response ended by itself. If unknown, a cut response is judged by its text.
        tokens: sampled tokens, the end-of-sequence token included; needed if tokens have a price.

    Raises:
        ValueError: tokens have a price, and their number is not given.

    Example:
        >>> judge(r"</think>\boxed{ 4}", ground_truth(b" 4 apples", [2, 7])).reward
        1.0
    """
    tree = json.loads(truth)
    continuation = b64decode(tree["continuation"])
    data = response.encode("utf-8", "surrogatepass") if isinstance(response, str) else response
    outcome = score_response(data, finished, continuation, tuple(accumulate(tree["token_lengths"])), THINKING)
    if not TOKEN_PRICE:
        return outcome
    if tokens is None:
        raise ValueError("tokens have a price: give the number of sampled tokens")
    return priced(outcome, tokens, TOKEN_PRICE)


class Policy(NamedTuple):
    """The tokens that end a policy's responses, and the bytes of all its tokens."""

    end_ids: frozenset[int]
    end_texts: tuple[str, ...]
    """Texts of the end tokens, without empty ones."""
    token_bytes: tuple[bytes, ...]

    def response(self, ids: Sequence[int]) -> tuple[bytes, bool]:
        """Return the bytes of sampled ids without the end-of-sequence token, and whether there was one."""
        finished = bool(ids) and ids[-1] in self.end_ids
        return response_bytes(ids[:-1] if finished else ids, self.token_bytes), finished

    def without_end(self, text: str) -> tuple[str, bool]:
        """Return a decoded response without the text of its end-of-sequence token, and whether there was one."""
        ending = next((end for end in self.end_texts if text.endswith(end)), "")
        return text[: len(text) - len(ending)], bool(ending)


@lru_cache(maxsize=1)
def read_policy(path: Path) -> Policy:
    """Read the `policy.json` of an export."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    token_bytes = tuple(map(bytes.fromhex, tree["token_bytes"]))
    ends = [token_bytes[i].decode(errors="replace") for i in tree["end_ids"] if i < len(token_bytes)]
    return Policy(frozenset(tree["end_ids"]), tuple(filter(None, ends)), token_bytes)


# ------------------------------------------------------------------------------------- called by the trainers


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Return the reward for verl (`reward.custom_reward_function.path`); it does not know if a response was cut."""
    outcome = judge(solution_str, ground_truth)
    return {"score": outcome.reward, "acc": float(outcome.right), "reason": outcome.reason}


def next_token_reward(completion_ids: Sequence[Sequence[int]], ground_truth: Sequence[str], **_: Any) -> list[float]:
    """Return the rewards for TRL: `GRPOTrainer(reward_funcs=next_token_reward)`. Exact, because it reads token ids."""
    policy = read_policy(Path(__file__).with_name(POLICY_FILE))
    _check_lengths(completion_ids, ground_truth)

    def reward(ids: Sequence[int], truth: str) -> float:
        response, finished = policy.response(ids)
        return judge(response, truth, finished, len(ids)).reward

    return list(map(reward, completion_ids, ground_truth))


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
    """Return the rewards for OpenRLHF: `--reward.remote_url .../rpt_reward.py`.

    Rewards are tensors, as OpenRLHF requires, or lists if torch is not installed.

    Args:
        queries: each prompt followed by the response to it.
        prompts: the prompts.
        labels: the ground truth of each response.
        **_: further columns, ignored.

    Raises:
        ValueError: a query does not begin with its prompt, for example because the prompt was cut to fit.
    """
    policy = read_policy(Path(__file__).with_name(POLICY_FILE))
    _check_lengths(queries, prompts, labels)

    def reward(query: str, prompt: str, label: str) -> float:
        if not query.startswith(prompt):
            raise ValueError("a query does not begin with its prompt: allow longer prompts, or export shorter contexts")
        response, finished = policy.without_end(query[len(prompt) :])
        return judge(response, label, finished).reward

    scores: Any = list(map(reward, queries, prompts, labels))
    with suppress(ImportError):
        import torch

        scores = torch.tensor(scores)
    return {"rewards": scores, "scores": scores, "extra_logs": {"accuracy": scores}}


def _check_lengths(*columns: Sized) -> None:
    if len(set(map(len, columns))) > 1:
        raise ValueError(f"columns of different lengths: {[len(column) for column in columns]}")
