r"""Damage in a corpus: control characters and U+FFFD in targets, continuations and contexts.

They come from text that was read with a wrong encoding, or from escapes that were resolved where none were meant: a
form feed and `rac` is `\frac` after a JSON or Python string was read once too often.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.characters import whole_span

DAMAGED = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}\x{FFFD}]"
"""Regular expression of polars for the characters; tabs and line ends are none of them."""

EXAMPLES = 5
DOCUMENTS_NAMED = 200
"""Maximum number of documents that a `where` to paste names."""
BYTES_AROUND = 48
CONTINUATION = 16
"""Tokens of the proxy, from the target on, that count as the continuation of a site."""

_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xef\xbf\xbd")
_NAMES = {
    0x00: "null",
    0x07: "bell",
    0x08: "backspace",
    0x0B: "vertical tab",
    0x0C: "form feed",
    0x1B: "escape",
    0x7F: "delete",
    0x85: "next line",
    0xFFFD: "replacement character",
}
_CAUSES = {
    0x07: r"\a read as an escape, as in \alpha",
    0x08: r"\b read as an escape, as in \begin",
    0x0B: r"\v read as an escape, as in \vec",
    0x0C: r"\f read as an escape, as in \frac; or a page break of a PDF",
    0x1B: "colours of a terminal",
    0xFFFD: "bytes that were read with a wrong encoding",
}


@dataclass
class _Character:
    """Counts of one character."""

    documents: int = 0
    selectable: int = 0
    targets: int = 0
    continuations: int = 0
    contexts: int = 0
    doc_ids: list[str] = field(default_factory=list)
    examples: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    """(0 for a target that is a site, 1 for another site before it, 2 for another position; number; the example)."""


class Damage:
    """Counts of control characters and U+FFFD over the documents added so far."""

    def __init__(self) -> None:
        self._found: dict[int, _Character] = defaultdict(_Character)

    def add(self, doc_id: str, text: bytes, positions: pl.DataFrame) -> None:
        """Count a document.

        Args:
            doc_id: Its id.
            text: Its text.
            positions: All its positions [T], with `position`, `byte_offset`, `selectable` and `kept`.
        """
        hits: dict[int, list[int]] = defaultdict(list)
        for hit in _BYTES.finditer(text):
            hits[ord(hit[0].decode())].append(hit.start())
        offset_T, selectable_T, kept_T = (positions[n].to_numpy() for n in ("byte_offset", "selectable", "kept"))
        for code, offsets in hits.items():
            has_T = np.zeros(positions.height, dtype=bool)
            has_T[np.searchsorted(offset_T, offsets, side="right") - 1] = True
            self._count(self._found[code], doc_id, text, offset_T, (has_T, selectable_T, kept_T))

    def _count(
        self, found: _Character, doc_id: str, text: bytes, offset_T: NDArray[Any], masks: tuple[NDArray[Any], ...]
    ) -> None:
        has_T, selectable_T, kept_T = masks
        T = len(has_T)
        before_T = np.concatenate([[0], np.cumsum(has_T)])
        in_context_T = before_T[:-1] > 0
        ahead_T = before_T[np.minimum(np.arange(T) + CONTINUATION, T)] > before_T[:-1]
        found.documents += 1
        found.selectable += int((has_T & selectable_T).sum())
        found.targets += int((has_T & kept_T).sum())
        found.continuations += int((ahead_T & kept_T).sum())
        found.contexts += int((in_context_T & kept_T).sum())
        if len(found.doc_ids) <= DOCUMENTS_NAMED:
            found.doc_ids.append(doc_id)
        chosen = (has_T & kept_T, ahead_T & kept_T, has_T)
        order, t = next((n, int(np.argmax(mask_T))) for n, mask_T in enumerate(chosen) if mask_T.any())
        end = int(offset_T[t + 1]) if t + 1 < T else len(text)
        example = {"doc_id": doc_id, "position": t, "kept": bool(kept_T[t])} | _around(text, int(offset_T[t]), end)
        found.examples.append((order, found.documents, example))
        found.examples = sorted(found.examples, key=lambda each: each[:2])[:EXAMPLES]

    def rows(self, where: str) -> list[dict[str, Any]]:
        """Return one row per character, those that are targets most often first.

        Args:
            where: The rule of training documents, to which `where` adds a condition.

        Returns:
            `character` (`U+000C`), `text`, `name` and likely `cause`; `documents`, `selectable` positions with it, and
            sites with it in their `targets`, `continuations` (16 tokens) and `contexts`; `examples` in their text;
            `where`: the rule without these documents, None if there are more than `DOCUMENTS_NAMED`.
        """
        rows = [
            {
                "character": f"U+{code:04X}",
                "text": chr(code),
                "name": _NAMES.get(code, "control character"),
                "cause": _CAUSES.get(code, ""),
                **{n: getattr(found, n) for n in ("documents", "selectable", "targets", "continuations", "contexts")},
                "examples": [example for _, _, example in found.examples],
                "where": without(where, found.doc_ids),
            }
            for code, found in self._found.items()
        ]
        return sorted(rows, key=lambda row: (-row["targets"], -row["continuations"], -row["documents"], row["text"]))


def without(where: str, doc_ids: list[str]) -> str | None:
    """Return a rule that keeps nothing of some documents; None if they are more than `DOCUMENTS_NAMED`.

    Example:
        >>> without("entropy > 1", ["a", "b"])
        "(entropy > 1) AND doc_id NOT IN ('a', 'b')"
    """
    if len(doc_ids) > DOCUMENTS_NAMED:
        return None
    quoted = ", ".join(f"'{doc_id}'" for doc_id in doc_ids)
    return f"({where}) AND doc_id NOT IN ({quoted})"


def _around(text: bytes, begin: int, end: int) -> dict[str, str]:
    """Return the whole characters of a token, and the text around them."""
    begin, end = whole_span(text, begin, end)
    return {
        "before": text[max(begin - BYTES_AROUND, 0) : begin].decode(errors="ignore"),
        "target": text[begin:end].decode(),
        "after": text[end : end + BYTES_AROUND].decode(errors="ignore"),
    }
