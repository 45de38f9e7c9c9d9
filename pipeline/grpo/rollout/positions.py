"""Checks that a prompt and its response fit into the policy's positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.config.errors import UserError
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.shards.reader import Site


def positions_of(config: Any) -> int | None:
    """Return the number of positions of a policy, or None if it has no limit.

    With `rope_type: dynamic`, the configuration names the trained number and a factor by which it extends.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    own = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # for all layers, or by layer type
    stretches = [part.get("factor", 1) for part in own if part.get("rope_type") == "dynamic"]
    return positions and int(positions * max(stretches, default=1))


def must_fit(config: Any, prompt: int, max_new_tokens: int) -> None:
    """Check that a prompt and its response fit into the policy's positions.

    Args:
        config: the model's configuration, as `transformers` has it.
        prompt: tokens of the longest prompt.
        max_new_tokens: tokens of the longest response. Its last token needs no position, because nothing reads it.

    Raises:
        UserError: together they need more positions than the policy has.
    """
    positions = positions_of(config)
    if positions is not None and prompt + max_new_tokens - 1 > positions:
        raise UserError(
            f"a prompt of {prompt:,} tokens and a response of {max_new_tokens:,} need more than the policy's "
            f"{positions:,} positions",
            where=getattr(config, "_name_or_path", "") or type(config).__name__,
            hint="lower `rollout.max_new_tokens`, `materialize.max_context_tokens` or `supervised.window`, or choose "
            "another policy",
        )


def sites_must_fit(
    config: Any, prompts: PromptBuilder, sites: Iterable[Site], longest: int, max_new_tokens: int
) -> None:
    """Check that all sites' prompts and responses fit into the policy's positions.

    Sites are encoded one by one only if the upper bound `longest` does not fit.

    Args:
        config: as for `must_fit`.
        prompts: builds the sites' prompts.
        sites: sites of the shards.
        longest: upper bound of the tokens of a prompt and its response.
        max_new_tokens: tokens of the longest response.

    Raises:
        UserError: see `must_fit`.
    """
    positions = positions_of(config)
    if positions is None or longest - 1 <= positions:
        return
    for site in sites:
        must_fit(config, len(prompts.ids(site.context)), max_new_tokens)
