"""The readable report of an evaluation: tables for the terminal and Markdown, and sentences about them.

Everything here is a pure function of the JSON report that `summarize` makes and `evaluation.json` keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import rich.box
import rich.table
import rich.text

from pipeline.core.progress import counted
from pipeline.evaluation.foretold import sentence
from pipeline.evaluation.headline import headline
from pipeline.grpo.run.lineage import described

NOTHING = "–"
"""Cell of a table where there are no sites."""


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of cells; the first column is left-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_text: bool = False
    """True if cells are sentences, so that every column is left-aligned."""

    def markdown(self) -> str:
        """Return the table as Markdown under its title."""
        rule = "---" if self.is_text else "---:"
        lines = [self.header, ("---", *(rule for _ in self.header[1:])), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(map(_one_line, line))} |" for line in lines)])

    def terminal(self) -> rich.table.Table:
        """Return the table for a terminal, without styles in cells; one with the usual bands fits 80 columns."""
        table = rich.table.Table(
            title=rich.text.Text(self.title),
            title_justify="left",
            title_style="bold",
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for i, name in enumerate(self.header):
            table.add_column(rich.text.Text(name), justify="left" if self.is_text or not i else "right", no_wrap=i == 0)
        for row in self.rows:
            table.add_row(*map(rich.text.Text, row))
        return table


def brief(report: Mapping[str, Any]) -> Iterator[Table | tuple[str, ...]]:
    """Yield what a first look needs: the accuracy of the first set of sites, and what rose and what did not."""
    summary, last = next(iter(report["sets"].values())), report["policies"][-1]
    accuracy = accuracy_table(summary)
    hybrid = summary["hybrid"].get(last, {}).values()
    row = ((f"hybrid {last}", *(percent(band and band["hybrid"]) for band in hybrid)),) if hybrid else ()
    yield replace(accuracy, rows=accuracy.rows + row)
    yield headline(report)


def blocks(report: Mapping[str, Any]) -> Iterator[Table | tuple[str, ...]]:
    """Yield the report from top to bottom: tables, and tuples of sentences."""
    yield headline(report)
    yield tuple(about(report))
    for summary in report["sets"].values():
        yield accuracy_table(summary)
        yield difference_table(summary)
        yield tuple(sentences(summary))
        if summary["hybrid"]:
            yield hybrid_table(summary)
        if summary["samples"]:
            yield sample_table(summary)
    yield from other_tables(report)
    if report.get("foretold"):
        yield forecast_table(report["foretold"])
    if report["scaling"]:
        yield objections_of(report["scaling"])


def other_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables beside accuracy by band: by label, outcomes, patterns, the law, the paper's rows."""
    summary = list(report["sets"].values())[-1]
    readings = list(summary["readings"].values())
    yield label_table(summary, "field", [spelled(reading["by_field"]) for reading in readings])
    yield label_table(summary, "token class", [spelled(reading["by_class"]) for reading in readings])
    for column in readings[0]["by_metadata"]:
        yield label_table(summary, f"`{column}`", [reading["by_metadata"][column] for reading in readings])
    yield reason_table(summary)
    if (patterns := report.get("patterns")) and in_words(patterns["groups"]):
        yield pattern_table(**patterns)
    if any(found["law"] for found in report["scaling"].values()):
        yield scaling_table(report["scaling"])
    if report["published"]:
        yield published_table(report["published"])


def title_of(summary: Mapping[str, Any]) -> str:
    """Return the title of a set of sites.

    Example:
        >>> title_of({"where": "field = 'solution'"}), title_of({"where": "true"})
        ("Positions where field = 'solution'", 'All positions')
    """
    return "All positions" if summary["where"] == "true" else f"Positions where {summary['where']}"


def accuracy_table(summary: Mapping[str, Any]) -> Table:
    """Return the accuracy, one row per reading and one column per band."""
    header = tuple(
        f"{name} > {band['above']:g}\n{counted(band['sites'], 'site')}\n{counted(band['documents'], 'document')}"
        for name, band in summary["bands"].items()
    )
    rows = tuple(
        (name, *(percent(estimate) for estimate in reading["accuracy"].values()))
        for name, reading in summary["readings"].items()
    )
    return Table(f"{title_of(summary)}: accuracy, % [95 % interval]", ("", *header), rows)


def difference_table(summary: Mapping[str, Any]) -> Table:
    """Return the differences, one row per comparison and one column per band."""
    rows = tuple(
        (f"{change['reading']}\n− {change['baseline']}", *(points(band) for band in change["bands"].values()))
        for change in summary["differences"]
    )
    return Table(f"{title_of(summary)}: differences, points [95 % interval]", ("", *summary["bands"]), rows)


def hybrid_table(summary: Mapping[str, Any]) -> Table:
    """Return each policy's two readings, the hybrid of both and the oracle above it, one column per band."""
    rows = []
    for policy, by_band in summary["hybrid"].items():
        bands = list(by_band.values())
        for name in ("direct", "reasoning", "hybrid", "oracle", "thinks"):
            label = "hybrid thinks at" if name == "thinks" else name
            rows.append((f"{label} {policy}", *(percent(band and band[name]) for band in bands)))
        for name, label in (("over_direct", "direct"), ("over_reasoning", "reasoning")):
            rows.append((f"hybrid − {label} {policy}", *(points(band and band[name]) for band in bands)))
        tokens = (
            f"{number(band['tokens'])} of {number(band['tokens_reasoning'])}" if band else NOTHING for band in bands
        )
        rows.append((f"tokens per site {policy}", *tokens))
    title = f"{title_of(summary)}: thinking where it pays, % of sites [95 % interval]"
    return Table(title, ("", *summary["bands"]), tuple(rows))


def forecast_table(found: Mapping[str, Any]) -> Table:
    """Return the calibration of a run's forecasts, one row per bin of groups."""
    rows = tuple(
        (f"{number(100 * each['expected'])}", percent(each["observed"]), f"{each['groups']:,}")
        for each in found["bins"]
    )
    header = ("foretold, %", "with a gradient, % [95 % interval]", "groups")
    return Table(f"Forecasts: {sentence(found)}", header, rows)


def sample_table(summary: Mapping[str, Any]) -> Table:
    """Return statistics of several responses per site, one row per policy and statistic, one column per band."""
    rows = tuple(
        (f"{name}\n{statistic}", *(percent(by_band[band].get(statistic)) for band in by_band))
        for name, by_band in summary["samples"].items()
        for statistic in next(iter(by_band.values()))
    )
    return Table(f"{title_of(summary)}: several responses, % [95 % interval]", ("", *summary["bands"]), rows)


def label_table(summary: Mapping[str, Any], noun: str, by_label: Sequence[Mapping[str, Any]]) -> Table:
    """Return accuracy by label, one row per label and one column per reading.

    Args:
        summary: Figures of a set of sites.
        noun: What the labels are, for the title.
        by_label: Each reading's accuracy by label.
    """
    rows = tuple(
        (f"{label}\n{counted(estimate['sites'], 'site')}", *(percent(own[label]) for own in by_label))
        for label, estimate in by_label[0].items()
    )
    return Table(f"{title_of(summary)}: accuracy by {noun}, % [95 % interval]", ("", *summary["readings"]), rows)


def spelled(by_label: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures by field or token class with labels for readers.

    Example:
        >>> spelled({"word_start": 1, "": 2})
        {'word start': 1, '(template text)': 2}
    """
    return {label.replace("_", " ") or "(template text)": found for label, found in by_label.items()}


def scaling_table(scaling: Mapping[str, Any]) -> Table:
    """Return the fitted law of each band, one row per band, whether or not it may be claimed."""
    rows = []
    for band, found in scaling.items():
        law = found["law"]
        if law is None:
            rows.append((band, str(len(found["points"])), *[NOTHING] * 5, "no"))
            continue
        own = (
            f"{law[n]['value']:.3f} [{law[n]['low']:.3f}, {law[n]['high']:.3f}]".replace("-", "−")
            for n in ("amplitude", "alpha", "plateau")
        )
        ahead = law["ahead"]["4"]
        rows.append(
            (
                band,
                str(len(found["points"])),
                *own,
                f"{law['r2']:.3f}",
                percent(ahead),
                "no" if found["objections"] else "yes",
            )
        )
    header = ("", "points", "A", "α", "P*", "R²", "at 4 × the compute, %", "a law?")
    return Table("P(C) = A / C^α + P*, C in units of the compute spent [95 % interval]", header, tuple(rows))


def objections_of(scaling: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why no law is claimed, one sentence for the bands that have the same reasons.

    Example:
        >>> objections_of({"easy": {"objections": ["2 points"]}, "hard": {"objections": ["2 points"]}})
        ('easy, hard: no law is claimed: 2 points.',)
    """
    bands: dict[str, list[str]] = {}
    for band, found in scaling.items():
        if found["objections"]:
            bands.setdefault("; ".join(found["objections"]), []).append(band)
    return tuple(f"{', '.join(names)}: no law is claimed: {reasons}." for reasons, names in bands.items())


def in_words(groups: Mapping[str, Any]) -> bool:
    """Return whether a response has a keyword: a toy policy thinks in no words."""
    return any(own[when]["value"] > 0 for own in groups.values() for when in ("before", "after"))


def pattern_table(before: str, after: str, groups: Mapping[str, Any]) -> Table:
    """Return shares of two policies' responses that contain a keyword, one row per group (`patterns.py`)."""
    rows = tuple(
        (
            group,
            percent(own["before"]),
            percent(own["after"]),
            points(own["difference"]),
            NOTHING if own["relative"] is None else f"{100 * own['relative']:+.0f} %".replace("-", "−"),
        )
        for group, own in groups.items()
    )
    header = ("", before, after, "difference, points", "relative")
    return Table("Responses with a keyword of the group, % [95 % interval]", header, rows)


def published_table(published: Mapping[str, Any]) -> Table:
    """Return the paper's rows, without intervals because it gives none."""
    rows = tuple((name, *(f"{value:.2f}" for value in row.values())) for name, row in published["rows"].items())
    return Table(f"{published['title']}: accuracy, %", ("", *next(iter(published["rows"].values()))), rows)


def reason_table(summary: Mapping[str, Any]) -> Table:
    """Return how responses ended and how long they are, one column per reading."""
    readings = summary["readings"].values()
    reasons = next(iter(readings))["reasons"]
    seen = [reason for reason in reasons if any(r["reasons"][reason] for r in readings)]
    rows = [(reason.replace("_", " "), *(f"{r['reasons'][reason]:,}" for r in readings)) for reason in seen]
    for name in ("format_failures", "truncated"):
        rows.append((f"{name.replace('_', ' ')}, %", *(number(r[name] and 100 * r[name]["value"]) for r in readings)))
    rows.append(("tokens, mean", *(number(r["mean_length"]) for r in readings)))
    for i, name in enumerate(("median", "95th percentile", "longest")):
        rows.append((f"tokens, {name}", *(number((r["length_quantiles"] or [None] * 3)[i]) for r in readings)))
    return Table(f"{title_of(summary)}: responses", ("", *summary["readings"]), tuple(rows))


def sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences in words, band by band, and whether the two intervals overlap."""
    for change in summary["differences"]:
        for band, difference in change["bands"].items():
            if difference is None:
                yield f"{band}: no sites."
                continue
            own, other = (summary["readings"][change[role]]["accuracy"][band] for role in ("reading", "baseline"))
            relation = "equal to"
            if own["value"] != other["value"]:
                relation = "above" if own["value"] > other["value"] else "below"
            overlap = "overlap" if difference["intervals_overlap"] else "do not overlap"
            yield (
                f"{band}: {change['reading']} ({100 * own['value']:.1f} %) is {relation} {change['baseline']} "
                f"({100 * other['value']:.1f} %); the two intervals {overlap}, {p_value(difference['p_value'])}."
            )


def markdown(report: Mapping[str, Any], pictures: tuple[str, ...] = ()) -> str:
    """Return the whole report as a Markdown page.

    Args:
        report: The JSON report.
        pictures: Names of image files in the same folder as the page.
    """
    parts = [f"# Evaluation of {report['recipe']}"]
    parts += [f"![held-out accuracy over training steps]({picture})" for picture in pictures]
    for block in blocks(report):
        parts.append(block.markdown() if isinstance(block, Table) else "\n".join(f"- {line}" for line in block))
    return "\n\n".join(parts) + "\n"


def about(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences that describe the sets of sites and how the numbers are computed."""
    for summary in report["sets"].values():
        documents = counted(summary["documents"], "held-out document")
        yield f"{title_of(summary)}: {counted(summary['sites'], 'site')} of {documents}."
    yield (
        f"Bands are nested; their thresholds are nats of the entropy of {report['bands_by'] or 'the proxy'}. Direct: "
        "the most likely next token after the bare context. Reasoning: a response to the prompt (template "
        f"`{report['template']}`) at temperature {report['temperature']:g}, its boxed prediction judged by the "
        "prefix-matching reward. Intervals are clustered by document; p-values are those of an exact sign-flip test "
        "over documents, paired by site, and not corrected for the number of comparisons."
    )
    if report["samples"]:
        yield (
            f"Several responses: {report['samples']} to each site at temperature {report['sample_temperature']:g}; "
            "pass@k by the unbiased estimator."
        )
    if report.get("warm_up"):
        yield f"The run started from the policy of a warm-up ({described(report['warm_up'])})."
    if report["published"]:
        yield report["published"]["caveat"]


def percent(estimate: Mapping[str, Any] | None) -> str:
    """Format an estimate and its interval in percent.

    Example:
        >>> percent({"value": 0.445, "low": 0.4012, "high": 0.489}), percent(None)
        ('44.5 [40.1, 48.9]', '–')
    """
    if estimate is None:
        return NOTHING
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def p_value(value: float) -> str:
    """Format a p-value.

    Example:
        >>> p_value(0.0421), p_value(1.2e-9)
        ('p = 0.042', 'p < 0.001')
    """
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def number(value: float | None) -> str:
    """Format a number with one decimal.

    Example:
        >>> number(22.96), number(None)
        ('23.0', '–')
    """
    return NOTHING if value is None else f"{value:.1f}"


def points(difference: Mapping[str, Any] | None) -> str:
    """Format a difference and its interval in percentage points.

    Example:
        >>> points({"value": 0.224, "low": -0.0012, "high": 0.4})
        '+22.4 [−0.1, 40.0]'
    """
    if difference is None:
        return NOTHING
    value, low, high = (100 * difference[part] for part in ("value", "low", "high"))
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")


def _one_line(cell: str) -> str:
    return cell.replace("<", "&lt;").replace("\n", "<br>").replace("|", "\\|")
