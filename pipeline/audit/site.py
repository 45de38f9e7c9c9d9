"""One position of a corpus: its text, scores, decision, and the training example made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.audit.browse.document import Document, as_trained
from pipeline.audit.characters import whole_span
from pipeline.audit.decisions import decisions
from pipeline.audit.lineage import Lineage
from pipeline.audit.locate import Location
from pipeline.audit.why_not import later_columns
from pipeline.config.manifest import MaterializeConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.change import shortest_change
from pipeline.selection.explain import explain
from pipeline.selection.later_rules import FAILS, HOLDS, UNKNOWN
from pipeline.selection.metadata import rule_columns

if TYPE_CHECKING:
    from pipeline.grpo.rollout.prompt import PromptBuilder

BYTES_BEFORE, BYTES_AFTER = 600, 240
"""Bytes of the document shown before and after the position."""
_HELD = {HOLDS: True, FAILS: False, UNKNOWN: None}
SCORES = ("entropy", "entropy_partial", "nll", "rank")


def site(
    lineage: Lineage,
    where: Location,
    config: MaterializeConfig,
    *,
    policy: CorpusTokenizer,
    prompts: Callable[[], PromptBuilder],
    proxy: CorpusTokenizer | None,
) -> dict[str, Any]:
    r"""Return everything known about a position, as JSON values.

    Args:
        lineage: The selection.
        where: The position.
        config: Settings that turn sites into examples.
        policy: Tokenizer of the policy.
        prompts: Returns the trainer's `PromptBuilder`.
        proxy: Tokenizer that decodes the proxy's most likely tokens; None if they were not stored.

    Returns:
        The origin; `before`, `characters`, `after` as text, where `characters` are the whole ones that hold the token;
        `token`, with \xNN where it splits a character; the scores in nats, `rank` (0: the proxy's most likely token)
        and `top` (text, probability), null where there are none; `decision`: `kept`, or the reason of the rejection;
        `rule`: the rule of the document's split, and `parts` of it, each with its `text`, whether it `holds`, and the
        `values` of its columns; `later`: the rules after it, `holds` null where one was not reached or one of several
        dropped the position; `change`: the shortest change of the rule that would keep it (`shortest_change`), null
        unless the rule dropped it; `trained`: the result of `as_trained`.
    """
    document = Document(where.document.values, where.scores.values)
    positions = pl.concat(decisions(lineage, where.audited_shard))
    decided = positions[where.position]
    row = decided.row(0, named=True)
    rule = str(lineage.select.config["where" if document.meta["split"] == "train" else "validation_where"])
    begin = row["byte_offset"]
    end = begin + len(document.tokens[where.position])
    whole = slice(*whole_span(document.text, begin, end))
    shown = slice(where.position, where.position + 1)
    columns = rule_columns(lineage.rule.metadata)
    later = later_columns(lineage.select, positions, shown)
    change = shortest_change(rule, columns, decided) if row["decision"] == "where" else None
    top = document.top(shown, proxy)[0] if proxy else None
    return {
        "site_id": where.site_id,
        "selection": lineage.select.fingerprint,
        **{name: document.meta[name] for name in ("doc_id", "split", "source_file", "source_row", "meta")},
        "position": where.position,
        "tokens": len(document),
        "bytes": [begin, end],
        "before": document.text[max(0, whole.start - BYTES_BEFORE) : whole.start].decode(errors="ignore"),
        "token": document.text[begin:end].decode(errors="backslashreplace"),
        "characters": document.text[whole].decode(),
        "after": document.text[whole.stop : whole.stop + BYTES_AFTER].decode(errors="ignore"),
        **{name: row[name] for name in ("field", "token_class", *SCORES, "band", "decision")},
        "rule": rule,
        "parts": [asdict(part) for part in explain(rule, columns, decided)],
        "later": [{"text": part["text"], "holds": _HELD[part["holds"]]} for part in later],
        "change": asdict(change) if change else None,
        "top": top,
        "trained": as_trained(document, where.position, config, policy, prompts),
    }
