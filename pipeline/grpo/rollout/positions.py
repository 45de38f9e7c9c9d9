"""How many positions a policy has: a prompt and the response to it must not need more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.config.errors import UserError
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.shards.reader import Site


def positions_of(config: Any) -> int | None:
    """Positions a policy was made for, or None if it has no limit.

    With `rope_type: dynamic` the configuration names those it was trained with, and how many times as many it stretches
    to.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    own = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # of all layers, or by type of layers
    stretches = [part.get("factor", 1) for part in own if part.get("rope_type") == "dynamic"]
    return positions and int(positions * max(stretches, default=1))


def must_fit(config: Any, prompt: int, room: int) -> None:
    """Refuse what a policy cannot read.

    Args:
        config: of the model, as `transformers` has it.
        prompt: tokens of the longest prompt.
        room: tokens of the longest response. Its last one is read by nobody.

    Raises:
        UserError: together they need more positions than the model was made for.
    """
    positions = positions_of(config)
    if positions is not None and prompt + room - 1 > positions:
        raise UserError(
            f"a prompt of {prompt:,} tokens and a response of {room:,} need more than the policy's {positions:,} "
            "positions",
            where=getattr(config, "_name_or_path", "") or type(config).__name__,
            hint="lower `rollout.max_new_tokens`, `materialize.max_context_tokens` or `supervised.window`, or choose "
            "another policy",
        )


def sites_must_fit(config: Any, prompts: PromptBuilder, sites: Iterable[Site], longest: int, room: int) -> None:
    """Refuse sites whose prompt and response the policy cannot read; each is looked at only if a bound is not enough.

    Args:
        config: as for `must_fit`.
        prompts: what the contexts are put in.
        sites: of the shards.
        longest: tokens that no prompt with its response exceeds.
        room: tokens of the longest response.

    Raises:
        UserError: see `must_fit`.
    """
    positions = positions_of(config)
    if positions is None or longest - 1 <= positions:
        return
    for site in sites:
        must_fit(config, len(prompts.ids(site.context)), room)
