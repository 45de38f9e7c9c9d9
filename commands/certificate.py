"""How the certificate of a selection is shown on a terminal: tables, and warnings that come last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.core.artifact import Record


def certificate_line(found: Mapping[str, Any]) -> str:
    """Return the verdict and the bits per byte in a line."""
    return f"certificate: {verdict_of(found)}; bits/byte: {_bits(found)}"


def certificate_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a certificate as tables."""
    calibration, shared = found["calibration"], found["agreement"]
    table = Table(title=f"certificate: {verdict_of(found)}", title_justify="left", show_header=False)
    table.add_row("bits/byte", _bits(found))
    rises = f"{_number(calibration['excess'])} nats above entropy, {_number(calibration['slope'])} nats per nat of it"
    table.add_row("surprise", rises)
    table.add_row("positions that are kept as hard", _percent(found["hard"]["share"]))
    table.add_row("sites that are names or digits", _percent(found["names_and_digits"]["share"]))
    table.add_row("agreement with a second selection", _number(shared["kappa"]) if shared else "not measured")
    return [table]


def _bits(found: Mapping[str, Any]) -> str:
    priced = {"proxy": "proxy", "unigram": "frequencies", "bigram": "pairs", "zlib": "zlib"}
    return ", ".join(f"{label} {_number(found['bits_per_byte'][name])}" for name, label in priced.items())


def verdict_of(found: Mapping[str, Any]) -> str:
    """Return the verdict, and whether it was overridden."""
    return f"{found['verdict']}{', accepted' if found['verdict'] == 'refuse' and found['accepted'] else ''}"


def warn(selection: Record) -> None:
    """Print every rule that a selection breaks to standard error, in red on a terminal; nothing if it passes."""
    from pipeline.core.marks import read_certificate

    found = read_certificate(selection)
    if found is not None and found["verdict"] in ("warn", "refuse"):
        console = Console(stderr=True, markup=False, highlight=False)
        for finding in found["findings"]:
            console.print(f"certificate: {finding['level']}: {finding['says']}", style="bold red", soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
