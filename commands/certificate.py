"""How the certificate of a selection is shown on a terminal: tables, and warnings that come last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipeline.core.progress import log

if TYPE_CHECKING:
    from pipeline.core.artifact import Record


def certificate_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a certificate as tables."""
    bits, hard, names = found["bits_per_byte"], found["hard"], found["names_and_digits"]
    table = Table("certificate", "", title=f"certificate: {verdict_of(found)}", title_justify="left")
    table.columns[1].justify = "right"
    for name, label in (("proxy", "proxy"), ("unigram", "token frequencies"), ("bigram", "pairs of tokens"),
                        ("zlib", "zlib")):  # fmt: skip
        table.add_row(f"bits/byte, {label}", _number(bits[name]))
    table.add_section()
    table.add_row("surprise above entropy, nats", _number(found["calibration"]["excess"]))
    table.add_row("surprise per nat of entropy", _number(found["calibration"]["slope"]))
    table.add_section()
    table.add_row("training positions that `where` lets through", _percent(hard["share"]))
    table.add_row("training sites that are names or digits", _percent(names["share"]))
    table.add_row("agreement with a second selection", "not measured")
    return [table]


def verdict_of(found: Mapping[str, Any]) -> str:
    """Return the verdict, and whether it was overridden."""
    return f"{found['verdict']}{', accepted' if found['verdict'] == 'refuse' and found['accepted'] else ''}"


def warn(selection: Record) -> None:
    """Print the verdict on a selection to standard error, and every rule that is broken, in red on a terminal."""
    from pipeline.core.marks import read_certificate

    found = read_certificate(selection)
    if found is None:
        return
    log(f"certificate  {verdict_of(found)}")
    if found["verdict"] in ("warn", "refuse"):
        console = Console(stderr=True, markup=False, highlight=False)
        for finding in found["findings"]:
            console.print(f"{finding['level']}: {finding['says']}", style="bold red", soft_wrap=True)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"
