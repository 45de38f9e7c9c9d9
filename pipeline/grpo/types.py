"""What passes between the parts of a training step.

Shape names: P prompts (one a site), G responses a prompt, R = P·G responses, C tokens of a context, T tokens of a
response, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Response:
    """What the policy answered to a prompt."""

    ids: tuple[int, ...]
    """Token ids as sampled [T], the end-of-sequence token included when there is one. Never decoded and re-encoded."""
    text: bytes
    """Bytes of the ids, end-of-sequence token left out."""
    finished: bool
    """It ended by itself, not for lack of room."""
    logprobs: tuple[float, ...]
    """Log-probability [T] (nats) of each id under the distribution it was sampled from."""
