"""Responses of an evaluation that its report shows: at the same sites, what each policy answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.invisible import escape_invisible
from pipeline.core.random_keys import random_key

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Predictions
    from pipeline.shards.reader import Site

EACH = 4
"""Sites of each kind."""
CONTEXT, RESPONSE = 400, 1500
"""Bytes shown of a context's end, and of a response's beginning."""


def examples(
    sites_N: Sequence[Site],
    chosen: Sequence[int],
    readings: Mapping[str, Predictions],
    policies: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Return sites drawn at random that the last policy newly gets right, lost, still gets wrong, or right as before.

    Args:
        sites_N: All sites.
        chosen: Indices of those of the first set.
        readings: Answers [N] by name of the reading.
        policies: Names of the policies in the order of training.
        seed: Seed of the draw.

    Returns:
        At most `EACH` sites of each kind, with `kind`, `site_id`, `entropy`, `field`, `context`, `truth`, and `answers`
        by reasoning: `policy`, `response`, `reason`, `hit`. Texts are escaped as in `escape_invisible`.
    """
    first, last = (readings[f"reasoning {name}"].hits_N for name in (policies[0], policies[-1]))
    kinds = {
        "newly right": last & ~first,
        "lost": first & ~last,
        "still wrong": ~first & ~last,
        "right as before": first & last,
    }
    order = sorted(chosen, key=lambda i: random_key("evaluation examples", seed, sites_N[i].site_id))
    return [
        _shown(kind, sites_N[i], [readings[f"reasoning {name}"] for name in policies], i)
        for kind, mask_N in kinds.items()
        for i in [i for i in order if mask_N[i]][:EACH]
    ]


def _shown(kind: str, site: Site, readings: Sequence[Predictions], i: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "site_id": site.site_id,
        "entropy": site.entropy,
        "field": site.field,
        "context": ("…" if len(site.context) > CONTEXT else "") + escape_invisible(_whole(site.context[-CONTEXT:])),
        "truth": escape_invisible(site.continuation),
        "answers": [
            {
                "policy": reading.policy,
                "response": escape_invisible(answer.response[:RESPONSE]) + "…" * (len(answer.response) > RESPONSE),
                "reason": answer.outcome.reason,
                "hit": answer.hit,
            }
            for reading in readings
            for answer in [reading.answers_N[i]]
        ],
    }


def _whole(content: bytes) -> bytes:
    """Return bytes without the rest of a character that was cut at their beginning.

    Example:
        >>> _whole("é4".encode()[1:])
        b'4'
    """
    return content.lstrip(bytes(range(0x80, 0xC0)))
