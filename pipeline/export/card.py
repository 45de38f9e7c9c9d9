"""Renders a data set's card for the Hub: its size, how the sites were chosen, and how to load them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import yaml

from pipeline.audit.funnel import funnel, kept
from pipeline.audit.lineage import Lineage
from pipeline.config.corpus import CorpusConfig
from pipeline.config.manifest import Manifest
from pipeline.selection.sites import sites_schema
from pipeline.shards.schema import SPLITS, shards_schema

COLUMNS = {
    "site_id": "`<doc_id>-<position>`",
    "doc_id": "the document, by a hash of its text",
    "position": "index of the target among the proxy's tokens",
    "byte_offset": "where the target begins in the document's UTF-8",
    "field": "column of the source record that the token comes from",
    "entropy": "nats over the proxy's most likely next tokens, renormalised; rounded up to 1/1024",
    "nll": "−ln p of the true token by the proxy; rounded up to 1/1024",
    "rank": "0 where the true token was the proxy's first guess",
    "token_class": "what the true token is: a digit, a word's start, …",
    "band": "hardest band whose threshold the entropy exceeds",
    "split": "train or validation, by document",
    "corpus": "name of the source that the document comes from",
    "context": "bytes of the document before the site: what the policy reads",
    "target": "bytes of the policy's true next token; may end inside a character",
    "continuation": "bytes of the target and the policy's tokens after it",
    "token_lengths": "byte lengths of the continuation's tokens: a prediction may end at their cumulative sums",
    "context_truncated": "whether the context has lost its beginning",
}
"""Meanings of the columns that the shards of every manifest have."""


def columns_of(manifest: Manifest) -> pa.Schema:
    """Return the columns of a manifest's shards."""
    return shards_schema(sites_schema(manifest.select.metadata, bool(manifest.corpus.sources)))


def meaning_of(column: str) -> str:
    """Return the meaning of a column of the shards."""
    return COLUMNS.get(column, "metadata of the document")


def licences(corpus: CorpusConfig) -> list[str]:
    """Return the distinct licences that a corpus and its sources name."""
    names = [corpus.license, *(source.license for source in corpus.sources)]
    return list(dict.fromkeys(licence for licence in names if licence))


def card(manifest: Manifest, lineage: Lineage, examples: Sequence[dict[str, Any]], remote: str) -> str:
    """Return the `README.md` of a data set: YAML front matter for the Hub, then Markdown.

    Args:
        manifest: the manifest of the shards.
        lineage: the records of the stages, including materialize.
        examples: a few rows of the training shards.
        remote: the address of the data set.
    """
    shards = lineage.materialize
    assert shards is not None
    size = shards.summary.bytes
    named = licences(manifest.corpus)
    front = {
        **({"license": named[0].lower() if len(named) == 1 else [name.lower() for name in named]} if named else {}),
        "pretty_name": f"Next-token sites of {manifest.name}",
        "task_categories": ["text-generation"],
        "tags": ["reinforcement-pre-training", "next-token-reasoning", "croissant"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}-*.parquet"} for s in SPLITS if shards.files(s)],
            }
        ],
    }
    rule = {k: v for k, v in manifest.select.identity().items() if v is not None}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# Next-token sites of {manifest.name}",
        manifest.description,
        "Positions of a corpus at which the next token is hard to guess, for Reinforcement Pre-Training "
        "(arXiv 2506.08007): a policy reads `context`, thinks, and predicts; it is rewarded if the prediction is a "
        "prefix of `continuation` that ends where one of its tokens ends.",
        "## Size",
        _table(["split", "sites"], [[s, f"{shards.counters[f'kept.{s}']:,}"] for s in SPLITS]),
        f"{size:,} bytes, {size / max(kept(shards.counters), 1):.0f} per site: rows are "
        "sorted, and neighbours share their contexts. Shuffle indices, not rows.",
        "## How the sites were chosen",
        f"```yaml\n{yaml.safe_dump(rule, sort_keys=False, allow_unicode=True)}```",
        _table(["stage", "left", "unit", "lost, and why"], [_step(step) for step in funnel(lineage.records)]),
        "## Columns",
        _table(["column", "meaning"], [[f"`{name}`", meaning_of(name)] for name in columns_of(manifest).names]),
        "## Examples",
        _table(["context ends with", "next token", "entropy"], [_example(row) for row in examples]),
        "## How to load",
        f'```python\nfrom datasets import load_dataset\n\nsites = load_dataset("{remote}", split="train")\n```',
        "```python\nimport polars as pl\n\n" + f'sites = pl.read_parquet("{remote}/data/train-*.parquet")\n```',
        f"```bash\nrpt pull {remote} --work work    # verified by sha256, ready for rpt train\n```",
        "## Licence",
        ", ".join(named) or "The manifest names none: ask whoever made the corpus.",
        "## Provenance",
        _table(
            ["stage", "version", "fingerprint", "content"],
            [[s, str(r.version), f"`{r.fingerprint}`", f"`{r.content[:16]}…`"] for s, r in lineage.records.items()],
        ),
        "`croissant.json` has the sha256 of every file, `manifest.yaml` what made them.",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _step(step: Any) -> list[str]:
    lost = ", ".join(f"{reason} {count:,}" for reason, count in step.lost.items() if count)
    return [step.name, f"{step.count:,}", step.unit, lost]


def _example(row: dict[str, Any]) -> list[str]:
    context = row["context"].decode(errors="replace")[-80:]
    return [_cell(context), _cell(row["target"].decode(errors="replace")), f"{row['entropy']:.2f}"]


def _cell(text: str) -> str:
    """Return a text as code for a table's cell."""
    shown = text.replace("\n", "↵").replace("|", "\\|").replace("`", "ˋ")
    return f"`{shown}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
