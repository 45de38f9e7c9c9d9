"""Show: print one position of a corpus.

Input:   the artifacts of `rpt data` (or `rpt select`) for a manifest; any position, a site or not.
Output:  the token in its document, its scores and the proxy's guesses, why it was kept or rejected with every part of
         the rule, the shortest change of it that would keep it, and the prompt and continuation of its training
         example; or JSON. Nothing is written.
Command: rpt show data_manifests/<name>.yaml SITE_ID|DOC_ID|SHARD:ROW [--recipe recipes/<name>.yaml] [--json]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.audit.browse.document import prompt_builder
from pipeline.audit.lineage import proxy_tokenizer
from pipeline.audit.locate import locate
from pipeline.audit.site import SCORES, site
from pipeline.audit.trace import find_site
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.task import TaskConfig
from pipeline.core.invisible import escape_invisible
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.core.workspace import with_policy_tokenizer
from pipeline.selection.explain import in_words

_MARKED = "bold reverse"
_MOST = 300
"""Characters of a part of the rule, or of its values, that are shown."""


def show(manifest: Manifest, place: str, *, work: Path, recipe: Recipe | None = None) -> dict[str, Any]:
    """Return everything that is known about a position, as JSON values.

    Args:
        manifest: with its overrides.
        place: a `site_id`, a `doc_id` (its first site), or file and row (from 0) of a shard, `train-….parquet:17`.
        work: folder of all manifests' artifacts.
        recipe: its prompt template and policy make the prompt; without one, the default template is used.

    Raises:
        UserError: the selection does not exist, or the corpus has no such position.
        IntegrityError: a file that was read has been changed.
    """
    lineage, site_id = find_site(work / manifest.name, manifest, place)
    found = locate(lineage, site_id)
    config = with_policy_tokenizer(manifest, work / manifest.name).materialize
    policy = CorpusTokenizer.load(config.policy_tokenizer, config.policy_tokenizer_revision)
    task, model = (recipe.task, recipe.policy.model) if recipe else (TaskConfig(), config.policy_tokenizer)
    run = Path("runs") / recipe.name if recipe else None
    return site(
        lineage,
        found,
        config,
        policy=policy,
        prompts=lambda: prompt_builder(model, task, run),
        proxy=proxy_tokenizer(manifest, lineage),
    )


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the position as tables."""
    facts = Table.grid(padding=(0, 2))
    kept = found["decision"] == "kept"
    for name, value in {
        "site": found["site_id"],
        "source": f"{escape_invisible(found['source_file'])}, row {found['source_row']}, {found['split']}",
        "position": f"{found['position']:,} of {found['tokens']:,}, bytes {found['bytes'][0]}–{found['bytes'][1]}",
        "token": _token(found),
        "field": f"{escape_invisible(found['field'] or '(template)')}, {found['token_class'].replace('_', ' ')}",
        "decision": "kept" if kept else f"rejected: {found['decision'].replace('_', ' ')}",
        "rule": " ".join(found["rule"].split()),
        **{name.replace("_", " "): _score(name, found[name]) for name in SCORES},
        "band": found["band"],
    }.items():
        facts.add_row(Text(name, "dim"), value)
    around = Text.assemble(
        escape_invisible(found["before"]), (_alone(found["characters"]), _MARKED), escape_invisible(found["after"])
    )
    return [
        facts,
        _parts(found["parts"], found["later"]),
        *_change(found["change"]),
        _passage("in its document", around),
        *_top(found),
        *_trained(found["trained"]),
    ]


def _parts(parts: Sequence[Mapping[str, Any]], later: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("part of the rule", "", "value", box=None)
    for part in parts:
        table.add_row(_short(part["text"]), "✓" if part["holds"] else "✗", _short(in_words(part["values"])))
    for rule in later:
        table.add_row(_short(rule["text"]), {True: "✓", False: "✗", None: "–"}[rule["holds"]], Text("after the rule"))
    return table


def _change(change: Mapping[str, Any] | None) -> list[Table]:
    if change is None:
        return []
    table = Table("shortest change that keeps it", "", box=None)
    for each in change["changes"]:
        instead = "(leave out)" if each["instead"] == "true" else each["instead"]
        table.add_row(_short(each["part"]), Text.assemble("→ ", _short(instead)))
    return [table]


def _short(text: str) -> Text:
    return Text(escape_invisible(text if len(text) <= _MOST else f"{text[:_MOST]}…"), overflow="fold")


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "– (not scored)"
    return f"{value} (0: the proxy's first guess)" if name == "rank" else f"{value:.4f} nats"


def _top(found: Mapping[str, Any]) -> list[Table]:
    if not found["top"]:
        return []
    table = Table("", "the proxy's guess", "probability", box=None)
    for rank, (text, logprob) in enumerate(found["top"]):
        true = rank == found["rank"]
        table.add_row(str(rank), Text(_alone(text), _MARKED if true else ""), f"{math.exp(logprob):.4f}")
    return [table]


def _trained(trained: Mapping[str, Any]) -> list[Table]:
    if trained["dropped"]:
        return [_passage("no training example", Text(trained["dropped"].replace("_", " ")))]
    prompt, (target, *rest) = trained["prompt"], trained["continuation"]
    parts: list[str | tuple[str, str]] = [
        (escape_invisible(prompt["before"]), "dim"),
        escape_invisible(prompt["context"]),
        (escape_invisible(prompt["after"]), "dim"),
    ]
    cut = ", the context is truncated at its beginning" if trained["truncated"] else ""
    tokens: list[str | tuple[str, str]] = [
        (_alone(target), _MARKED),
        *(part for token in rest for part in (("|", "dim"), _alone(token))),
    ]
    return [
        _passage(f"prompt, {prompt['tokens']:,} tokens{cut}", Text.assemble(*parts)),
        _passage("continuation, token by token", Text.assemble(*tokens)),
    ]


def _passage(title: str, text: Text) -> Table:
    table = Table(title)
    table.columns[0].overflow = "fold"
    table.add_row(text)
    return table


def _token(found: Mapping[str, Any]) -> str:
    """Return the token, or the whole characters that it is a part of with the bytes that it has of them."""
    whole = _alone(found["characters"])
    if found["token"] == found["characters"]:
        return whole
    begin, end = found["bytes"]
    return f"{whole} ({end - begin} of its {len(found['characters'].encode())} bytes)"


def _alone(text: str) -> str:
    """Return a token's text with visible spaces and line ends."""
    return escape_invisible(text).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
