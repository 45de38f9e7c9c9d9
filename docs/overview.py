"""Draw `docs/overview.svg`: one document, one hard token, eight thoughts, their rewards and advantages.

The rewards and advantages in the picture are computed by the functions that train: `python docs/overview.py`.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import numpy as np  # noqa: E402

from pipeline.grpo.algorithm.advantage import group_std  # noqa: E402
from pipeline.task.reward import prefix_reward  # noqa: E402

WIDTH, HEIGHT = 980, 468
DOCUMENT: tuple[tuple[tuple[str, int], ...], ...] = (
    (("Problem:", 0), (" What", 1), (" is", 0), (" 17", 2), (" ·", 1), (" 24", 2), ("?", 0)),
    (("Solution:", 0), (" 17", 0), (" ·", 0), (" 24", 0)),
    ((" =", 0), (" 17", 1), (" ·", 0), (" 20", 2), (" +", 0), (" 17", 0), (" ·", 0), (" 4", 1)),
    ((" =", 0), (" 340", 3), (" +", 0), (" 68", 4)),
    ((" =", 1), (" 408", 3), (".", 0)),
)
"""Lines of tokens, each with its difficulty from 0 (the proxy knows it) to 4."""
TARGET, CONTINUATION, ENDS = " 68", b" 68 = 408.", (3, 5, 9, 10)
THOUGHTS = (
    ("17 · 4: 10 · 4 + 7 · 4", " 68"),
    ("17 · 4 is near 70", " 70"),
    ("17 + 17 + 17 + 17", " 68"),
    ("same as before", " 340"),
    ("17 · 4, then the sum", " 68 = 408"),
    ("4 · 7 = 28, keep the 8", " 8"),
    ("only the first digit", " 6"),
    ("34 · 2", " 68"),
)
"""Thoughts, each with the prediction it ends in."""
HEAT = ("#fbfaf6", "#f8efd7", "#f5d4a5", "#f3a569", "#f0834e")
INK, QUIET, LINE, BLUE, RED, CARD = "#221f1a", "#625d54", "#c6c0b3", "#0f6fa3", "#a63d2c", "#ffffff"
_CHARACTER = 8.43
"""Width of a character of 14 px in the monospaced font."""


def draw() -> str:
    """Return the picture as SVG."""
    outcomes = [prefix_reward(prediction.encode(), CONTINUATION, ENDS) for _, prediction in THOUGHTS]
    advantages = group_std(np.array([[outcome.reward for outcome in outcomes]]))[0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="ui-sans-serif, Segoe UI, system-ui, Helvetica Neue, Noto Sans, sans-serif" aria-label="A small '
        "model scores every token of a document; at a hard one the policy thinks eight times and predicts what comes "
        'next; right predictions are rewarded, and made more likely.">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fbfaf7"/>',
        *_document(),
        *_thoughts([outcome.reason for outcome in outcomes], advantages.tolist()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _document() -> list[str]:
    """Return the card of the document, each token on the colour of its difficulty."""
    parts = [_title(24, "1", "A small model scores every token", "Text alone is enough: no labels, no reward model.")]
    parts.append(_card(24, 88, 372, 250))
    for row, tokens in enumerate(DOCUMENT):
        x, y = 44.0, 124 + 40 * row
        for token, heat in tokens:
            wide = _CHARACTER * len(token) + 4
            chosen = token == TARGET
            edge = f' stroke="{BLUE}" stroke-width="2.5"' if chosen else ""
            parts.append(
                f'<rect x="{x:.1f}" y="{y - 18}" width="{wide:.1f}" height="27" rx="4" fill="{HEAT[heat]}"{edge}/>'
            )
            parts.append(_mono(x + 2, y, token))
            if chosen:
                parts.append(
                    f'<path d="M {x + wide + 4:.1f} {y - 5} C 300 {y - 5}, 380 {y - 24}, 430 216" fill="none" '
                )
                parts.append(f'stroke="{BLUE}" stroke-width="1.5" stroke-dasharray="4 3"/>')
            x += wide + 2
    parts.append(_text(24, 366, "the small model is sure", QUIET, 12))
    for i, colour in enumerate(HEAT):
        parts.append(
            f'<rect x="{170 + 26 * i}" y="355" width="24" height="14" rx="2" fill="{colour}" stroke="{LINE}"/>'
        )
    parts.append(_text(306, 366, "unsure", QUIET, 12))
    parts.append(_text(24, 398, "Only hard tokens become training sites.", INK, 14))
    parts.append(_text(24, 420, "Here: what follows “= 340 +”?", QUIET, 13))
    return parts


def _thoughts(reasons: list[str], advantages: list[float]) -> list[str]:
    """Return the card of the thoughts with their predictions, rewards and advantages."""
    parts = [
        _title(430, "2", "It thinks eight times", ""),
        _title(716, "3", "Reward", ""),
        _title(836, "4", "Update", ""),
        _text(430, 70, "It reads the text before the token, and predicts what comes next.", QUIET, 13),
        _card(430, 88, 526, 290),
    ]
    for i, ((thought, prediction), reason, advantage) in enumerate(zip(THOUGHTS, reasons, advantages, strict=True)):
        y, right = 118 + 34 * i, reason == "match"
        colour = BLUE if right else RED
        parts.append(_text(446, y, f"“{thought}”", QUIET, 13))
        parts.append(_mono(616, y, f"[{prediction.replace(' ', '␣')}]"))
        parts.append(_text(716, y, f"{'✓ 1' if right else '✗ 0'}", colour, 14, "600"))
        parts.append(_text(752, y, "" if right else reason.replace("_", " "), QUIET, 12))
        wide = 26 * abs(advantage)
        x = 896 if advantage > 0 else 896 - wide
        parts.append(f'<rect x="{x:.1f}" y="{y - 12}" width="{wide:.1f}" height="14" rx="2" fill="{colour}"/>')
        parts.append(f'<line x1="896" x2="896" y1="{y - 17}" y2="{y + 8}" stroke="{LINE}"/>')
    parts.append(_text(430, 398, "Right: it continues the true text, and ends where a token ends.", INK, 14))
    parts.append(
        _text(430, 420, "Better than the group (blue): more likely next time. Worse (red): less likely.", QUIET, 13)
    )
    parts.append(_text(430, 442, "A group of equal rewards teaches nothing.", QUIET, 13))
    return parts


def _title(x: int, number: str, text: str, under: str) -> str:
    told = _text(x, 70, under, QUIET, 13) if under else ""
    circle = f'<circle cx="{x + 11}" cy="37" r="11" fill="{BLUE}"/>'
    figure = (
        f'<text x="{x + 11}" y="42" font-size="13" font-weight="600" text-anchor="middle" fill="#fff">{number}</text>'
    )
    return f"{circle}{figure}{_text(x + 30, 42, text, INK, 16, '600')}{told}"


def _card(x: int, y: int, width: int, height: int) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{CARD}" stroke="{LINE}"/>'


def _text(x: float, y: float, text: str, colour: str, size: int, weight: str = "400") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(text)}</text>'


def _mono(x: float, y: float, text: str) -> str:
    family = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
    style = f'font-family="{family}" font-size="14" fill="{INK}" xml:space="preserve"'
    return f'<text x="{x:.1f}" y="{y}" {style} textLength="{_CHARACTER * len(text):.1f}">{escape(text)}</text>'


if __name__ == "__main__":
    (DOCS / "overview.svg").write_text(draw(), encoding="utf-8")
