"""The tables of `rpt plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from pipeline.core.progress import duration


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the estimate as tables."""
    if "recipe" in found:
        from pipeline.grpo.policy.memory import memory_table

        return [memory_table(found), *([_forecasts(found["foretold"])] if "foretold" in found else [])]
    tokens, sites, sample = found["tokens"], found["sites"], found["sample"]
    table = Table("stage", "makes", "time here", "hours", "bytes", title=_title(found), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in found["stages"]:
        at_most = "≤ " if found["sites_are_at_most"] and stage["unit"] in ("sites", "examples") else ""
        table.add_row(
            stage["stage"],
            f"{at_most}{stage['count']:,.0f} {stage['unit']}",
            duration(stage["seconds"]),
            f"{'< 0.01' if stage['hours'] < 0.01 else format(stage['hours'], ',.2f')} {stage['of']}-hours",
            at_most + decimal(stage["bytes"]),
        )
    table.add_section()
    table.add_row("all", f"{found['shards']:,} shards", duration(found["seconds"]), "", decimal(found["bytes"]))
    sure = Table("certainty", "", box=None, padding=(0, 2, 0, 0))
    sure.add_row("tokens", _interval(tokens) if tokens else "unknown: no tokenizer")
    at_most = "at most " if found["sites_are_at_most"] else ""
    sure.add_row("sites", at_most + _interval(sites) if sites else "unknown: no weights of the proxy")
    for missing in found["not_reached"]:
        sure.add_row("not reached", missing)
    whole = "all" if sample["complete"] else "some"
    sure.add_row("read", f"{whole} {sample['records_read']:,} records of {decimal(sample['source_bytes'])}")
    if sample["documents"]:
        sure.add_row("scored", f"{sample['documents']:,} documents, {sample['tokens']:,} tokens, drawn at random")
    return [table, sure, *([_made(found["made"])] if found["made"] else [])]


def _forecasts(found: Mapping[str, Any] | None) -> Table:
    """Return what an earlier run says of the forecasts, in a line."""
    from pipeline.evaluation.foretold import sentence

    table = Table("forecasts", box=None, padding=(0, 2, 0, 0))
    table.add_row(sentence(found) if found else "unknown: no earlier run (--run) has made any")
    return table


def _made(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of a run beside its plan."""
    table = Table("stage", "made", "work", "bytes", title="a run of this manifest, and by how much it exceeds the plan")
    table.title_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        off = row["off"]
        count = "" if row["count"] is None else f"{row['count']:,} {row['unit']}{_share(off, 'count')}"
        seconds = duration(row["worker_seconds"]) + _share(off, "worker_seconds")
        table.add_row(row["stage"], count, seconds, decimal(row["bytes"]) + _share(off, "bytes"))
    return table


def _share(off: Mapping[str, float], name: str) -> str:
    return f" ({100 * off[name]:+.1f} %)".replace("-", "−") if name in off else ""


def _interval(of: Mapping[str, float]) -> str:
    if of["low"] == of["high"]:
        return f"{of['value']:,.0f}, all counted"
    return f"{of['low']:,.0f} to {of['high']:,.0f} (95 %)"


def _title(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    devices = ", ".join(sorted(set(machine["devices"])))
    tokens = f", {found['tokens']['value']:,.0f} tokens" if found["tokens"] else ""
    where = f", on {machine['scoring_workers']} workers ({devices})" if devices else ", ingest only"
    return f"{found['manifest']}: {found['documents']:,.0f} documents{tokens}{where}"
