"""The report of `rpt audit`: every number as one JSON object, and an offline HTML page made from it.

The page contains its styles, script and data and loads nothing. Its Content-Security-Policy allows only that one script
and that one style, by their hashes. Corpus text enters the page escaped by Jinja, or as JSON in data blocks.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.audit import svg
from pipeline.audit.damage import Damage
from pipeline.audit.decisions import SPLITS, damaged_texts, decisions, shards
from pipeline.audit.distributions import NEAR, Distributions
from pipeline.audit.dropped_records import duplicates, matches, quarantine
from pipeline.audit.examples import Example, Sample, TopTokens, heat_maps
from pipeline.audit.funnel import funnel, kept, percent
from pipeline.audit.lineage import Lineage
from pipeline.audit.why_not import RuleCounts
from pipeline.core.invisible import escape_invisible
from pipeline.core.marks import read_certificate
from pipeline.core.parquet import read_table
from pipeline.core.progress import counted
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.sites import BANDS

FORMAT = 1
"""Version of the format of `audit.json`, raised when a key changes its meaning."""
PAGE_BYTES = 5_000_000
"""Maximum size of a page, because browsers stall on larger ones."""
DOCUMENTS = 100
ROWS_SHOWN = 50
TEXT_SHOWN, CELL_SHOWN = 60, 240
"""Characters shown of a token in a table, and of any other value."""

_FOLDER = Path(__file__).parent
_STYLES = ("base.css", "heatmap.css", "report.css")
_SCRIPTS = ("theme.js", "minimap.js", "characters.js", "heatmap.js", "report.js")


def audit(
    lineage: Lineage, *, documents: int = DOCUMENTS, proxy: CorpusTokenizer | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Count every position of a selection and draw heat maps of a sample of its documents.

    Args:
        lineage: The selection.
        documents: Number of heat maps.
        proxy: Tokenizer that decodes the proxy's most likely tokens, if the scores contain them.

    Returns:
        The content of `audit.json`, and the heat maps.

    Raises:
        IntegrityError: A file differs from its recorded hash.
    """
    counted, sample, rules = Distributions(lineage.rule), Sample(documents), RuleCounts(lineage.rule)
    damage = Damage()
    for shard in shards(lineage):
        damaged = damaged_texts(shard)
        for frame in decisions(lineage, shard):
            counted.add(shard, frame)
            rules.add(frame)
            for (doc_id,), positions in frame.filter(pl.col("doc_id").is_in(list(damaged))).group_by(
                ["doc_id"], maintain_order=True
            ):
                damage.add(str(doc_id), damaged[str(doc_id)], positions)
            sample.add(shard.index, frame)
    chosen = sample.chosen()
    summary = {
        "format": FORMAT,
        "manifest": lineage.name,
        "selection": lineage.select.fingerprint,
        "rule": dict(lineage.select.config),
        "funnel": [vars(step) for step in funnel(lineage.records)],
        "certificate": read_certificate(lineage.select),
        "documents": {split: lineage.ingest.counters[split] for split in SPLITS},
        "sites": {split: lineage.select.counters[f"kept.{split}"] for split in SPLITS},
        "examples": kept(lineage.materialize.counters) if lineage.materialize else None,
        "bytes": lineage.materialize.summary.bytes if lineage.materialize else 0,
        "totals": counted.totals(),
        "histograms": counted.histograms(),
        "near": counted.near(),
        "why_not": rules.summary(lineage.select),
        "groups": counted.groups(),
        "many_values": counted.many_values(),
        "tokens": counted.tokens(),
        "damage": damage.rows(lineage.rule.where),
        "shown": [vars(example) for example in chosen],
        "quarantine": quarantine(lineage),
        "duplicates": duplicates(lineage),
        "matches": matches(lineage),
        "lineage": _records(lineage),
    }
    return summary, _heat_maps(lineage, chosen, proxy)


def _heat_maps(lineage: Lineage, chosen: Sequence[Example], proxy: CorpusTokenizer | None) -> list[dict[str, Any]]:
    """Return the heat maps in the order in which the documents were chosen."""
    ids = {example.doc_id for example in chosen}
    made: dict[str, dict[str, Any]] = {}
    for shard in shards(lineage, only={example.shard for example in chosen}):
        tops = _top_tokens(lineage, shard.index, ids, proxy) if proxy else None
        for frame in decisions(lineage, shard):
            made |= heat_maps(lineage, shard, frame, ids, tops)
    return [made[example.doc_id] for example in chosen]


def _top_tokens(lineage: Lineage, shard: int, doc_ids: set[str], proxy: CorpusTokenizer) -> TopTokens | None:
    if not lineage.score.config["score"]["store_top"]:
        return None
    file = lineage.score.file("scores", shard)
    assert file is not None
    rows = [
        row for row in read_table(file, ["doc_id", "top_ids", "top_logprobs"]).to_pylist() if row["doc_id"] in doc_ids
    ]
    return TopTokens(proxy, *({row["doc_id"]: row[name] for row in rows} for name in ("top_ids", "top_logprobs")))


def _records(lineage: Lineage) -> list[dict[str, Any]]:
    """Return the records from the source on, after hashing every file again."""
    rows = []
    for stage, record in lineage.records.items():
        for table in record.summary.tables:
            for file in record.files(table):
                file.verified()
        rows.append(
            {
                "stage": stage,
                "version": record.version,
                "fingerprint": record.fingerprint,
                "content": record.content,
                "inputs": dict(record.inputs),
                "config": dict(record.config),
                **record.summary.sizes,
                "seconds": record.summary.seconds,
                "counters": record.counters,
                "verified": True,
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------------ the page


def page(summary: Mapping[str, Any], heat_maps: Sequence[Mapping[str, Any]]) -> str:
    """Return the report as HTML of at most `PAGE_BYTES`; it states how many documents did not fit."""
    documents = [
        _list_entry(example, heat_map) | {"block": embedded(heat_map)}
        for example, heat_map in zip(summary["shown"], heat_maps, strict=True)
    ]
    html = render("report.html.j2", **_view(summary), documents=documents, drawn=_drawn(documents))
    # Drop documents from the end until the page fits: those drawn first represent all strata.
    while (over := len(html.encode()) - PAGE_BYTES) > 0 and documents:
        while over > 0 and documents:
            over -= len(documents.pop()["block"].encode())
        html = render("report.html.j2", **_view(summary), documents=documents, drawn=_drawn(documents))
    return html


def _drawn(documents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the documents whose heat maps are on the page."""
    return {document["doc_id"] for document in documents}


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return the comparison of two selections as one HTML file."""
    titles = {"band": "Difficulty band", "token_class": "Token class", "field": "Field", "source_file": "Source file"}
    groups = [(title, _group(name, comparison["groups"][name])) for name, title in titles.items()]
    return render("compare.html.j2", **{**comparison, "groups": groups})


def _view(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the template, arranged from `audit.json`."""
    size, examples = summary["bytes"], summary["examples"]
    cards = [(_number(step["count"]), step["name"]) for step in summary["funnel"][:4]]
    cards += [(_number(summary["sites"][split]), f"{split} sites") for split in SPLITS]
    cards += [(_number(size / examples, 1), "bytes per example")] if examples else []
    widest = {"documents": 0, "positions": 0}
    for step in summary["funnel"]:
        widest[step["unit"]] = max(widest[step["unit"]], step["count"])
    cuts = {
        split: {
            metric: sorted(
                {
                    t["threshold"]
                    for t in summary["near"]
                    if (t["split"], t["column"], t["source"]) == (split, metric, "where")
                }
            )
            for metric in svg.NAMES
        }
        for split in SPLITS
    }
    return {
        "audit": summary,
        "totals": summary["totals"],
        "cards": cards,
        "widest": widest,
        "cuts": cuts,
        "near_widths": NEAR,
        "near": [summary["near"][i : i + len(NEAR)] for i in range(0, len(summary["near"]), len(NEAR))],
        "groups": [
            (title, rows) for name, title in _titles(summary) if (rows := _group(name, summary["groups"][name]))
        ],
    }


def _titles(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = {
        "field": "Field",
        "token_class": "Token class",
        "decile": "Position in the document",
        "band": "Difficulty band",
    }
    meta = {n: n.removeprefix("meta.") for n in summary["groups"] if n.startswith("meta.")}
    return list((named | meta | {"source_file": "Source file"}).items())


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with labels, in reading order."""
    order = {"decile": [str(d) for d in range(10)], "band": ["none", *BANDS]}.get(name)
    if order is not None:
        rows = sorted(rows, key=lambda row: order.index(row["value"]))
    empty = {"field": "(template)"}.get(name, "(none)")
    labels = {str(d): f"{10 * d} – {10 * d + 10} %" for d in range(10)} if name == "decile" else {}
    if name == "token_class":
        labels = {row["value"]: _words(row["value"]) for row in rows}
    return [dict(row) | {"label": labels.get(row["value"], row["value"] or empty)} for row in rows[:ROWS_SHOWN]]


def _list_entry(example: Mapping[str, Any], heat_map: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a document in the list of documents."""
    share = example["kept"] / max(example["selectable"], 1)
    beginning = " ".join("".join(heat_map["tokens"][:60]).split())[:160]
    return dict(example) | {"share": f"{share:.6f}", "beginning": beginning}


def render(template: str, *, extra_styles: Sequence[str] = (), **values: Any) -> str:
    """Render a page of `templates/` with the shared styles and script and a policy that allows only them.

    Args:
        template: Name of the template.
        extra_styles: Further style sheets of `assets/`.
        values: Variables of the template.
    """
    style, script = _concatenated([*_STYLES, *extra_styles]), _concatenated(_SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": escape_invisible,
        "number": _number,
        "percent": percent,
        "words": _words,
        "token": _token,
        "cell": _cell,
        "yaml": _yaml,
    }
    environment.globals |= {
        "histogram": svg.histogram,
        "share": svg.share,
        "calibration": svg.calibration,
        "splits": SPLITS,
        "counted": counted,
    }
    policy = content_policy(style, script)
    return environment.get_template(template).render(style=style, script=script, policy=policy, **values)


def content_policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy of an offline page, which allows this style and script and nothing else."""
    return (
        f"default-src 'none'; script-src '{_source(script)}'; style-src '{_source(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(value: Any) -> str:
    r"""Return JSON for a data block of a page, escaped so that no text in it can end the block.

    Example:
        >>> embedded({"token": "</script>" + chr(0x2028)})
        '{"token":"\\u003c/script>\\u2028"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=as_json)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def as_json(value: Any) -> str:
    r"""Return bytes as text for JSON, with \xNN where they are not UTF-8.

    Raises:
        TypeError: The value is not bytes.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _concatenated(names: Sequence[str]) -> str:
    return "\n".join((_FOLDER / "assets" / name).read_text(encoding="utf-8") for name in names)


def _source(text: str) -> str:
    """Return the CSP source expression that allows exactly this inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _number(value: float | None, digits: int = 2) -> str:
    """Format a number with thousands separators.

    Example:
        >>> _number(1234567), _number(0.456), _number(-0.456), _number(-0.001), _number(None)
        ('1,234,567', '0.46', '−0.46', '0.00', '–')
    """
    if value is None:
        return "–"
    return (f"{value:,}" if isinstance(value, int) else f"{value:z,.{digits}f}").replace("-", "−")


def _token(text: str) -> str:
    r"""Return a token with visible marks for invisible characters, spaces and line ends.

    Example:
        >>> _token(" the"), _token("\n")
        ('␣the', '⏎')
    """
    shown = text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} … {len(text):,} characters"
    return escape_invisible(shown.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return _number(value)
    text = value if isinstance(value, str) else as_json(value) if isinstance(value, bytes) else str(value)
    return escape_invisible(text[:CELL_SHOWN] + "…" * (len(text) > CELL_SHOWN))


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _words(name: str) -> str:
    return name.replace("_", " ")
