"""The readable report of a study: Markdown and one offline HTML file, with the same text, tables and figures.

Everything here is a pure function of `study.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.progress import counted
from pipeline.evaluation.plots import draw_scaling
from pipeline.evaluation.report import (
    NOTHING,
    Table,
    number,
    objections_of,
    p_value,
    pattern_table,
    percent,
    points,
    scaling_table,
)
from pipeline.evaluation.report_blocks import Block, Figure, Heading, Paragraph, Trace, write_blocks
from pipeline.evaluation.study.plots import draw_arms
from pipeline.evaluation.study.power import AIM, MOST_SEEDS, POWER


def write_report(study: Mapping[str, Any], out: Path) -> Path:
    """Draw the figures, write `report.md` and `report.html`, and return the path of `report.html`."""
    draw_scaling(study["scaling"], out / "scaling.svg")
    draw_arms(study, out / "arms.svg")
    return write_blocks(list(blocks(study)), out)


def blocks(study: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the blocks of the report from top to bottom."""
    head = study["sets"][study["headline"]]
    yield Heading(f"Study {study['study']}")
    if study["description"]:
        yield Paragraph(study["description"])
    yield Paragraph(
        f"{counted(study['seeds'], 'seed')}; {counted(head['sites'], 'held-out site')} of "
        f"{counted(head['documents'], 'document')} where {study['where']}. Bands are nested. Intervals are 95 %: "
        "Student's t over documents and seeds. Every figure is recomputed from the responses that the parts saved. "
        "This is a policy of 0.8 million parameters on a made-up language: it shows that the machinery does what it "
        "says and what the method does there, and nothing about models of 14 billion parameters."
    )
    yield Heading("What holds")
    yield claims_table(study)
    yield Paragraph(
        "Verdicts are computed. Reproduced: in every band the interval of the difference lies on the claimed side of "
        "0; in part: in some; not reproduced: in none; not testable: no material, or fewer than three seeds. p-values "
        "and intervals are not corrected for the number of comparisons."
    )
    yield Heading("Next-token accuracy (Table 1)")
    yield Figure("arms.svg", "accuracy of every arm by band, with intervals")
    for name in study["sets"]:
        yield accuracy_table(study, name)
        if study["sets"][name]["samples"]:
            yield sample_table(study, name)
        yield difference_table(study, name)
        yield Paragraph(power_of(study["sets"][name]["differences"]))
    yield Heading("Compute")
    yield compute_table(study)
    yield Heading("Scaling (Figure 5)")
    yield Figure("scaling.svg", "accuracy of reasoning over training compute, with the fitted law")
    yield scaling_table(study["scaling"])
    yield from map(Paragraph, objections_of(study["scaling"]))
    yield Heading("RL on questions (Table 2)")
    if study["finetuned"]:
        yield finetuned_table(study)
        yield finetuned_differences(study)
        after = {arm: {"after RL": own["after"]} for arm, own in study["finetuned"]["differences"].items()}
        yield Paragraph(power_of([{"bands": bands} for bands in after.values()]))
    else:
        yield Paragraph("No arm went on to questions.")
    yield Heading("Reasoning patterns (Figure 6, Tables 4 and 9)")
    yield pattern_table(study["base"], study["reference"], study["patterns"])
    for trace in study["traces"]:
        title = f"{trace['site_id']}, {trace['entropy']:.2f} nats"
        yield Trace(f"{title}: {study['reference']}", trace["after"])
        yield Trace(f"{title}: {study['base']}", trace["before"])


def claims_table(study: Mapping[str, Any]) -> Table:
    """Return the claims with their verdicts, one row per claim."""
    rows = tuple((c["claim"], c["source"], c["verdict"], c["why"]) for c in study["claims"])
    return Table("Claims", ("claim", "source", "verdict", "why"), rows, is_text=True)


def title_of(study: Mapping[str, Any], name: str) -> str:
    """Return the title of a set of sites."""
    return "All positions" if name == "all" else f"Positions where {study['where']}"


def accuracy_table(study: Mapping[str, Any], name: str) -> Table:
    """Return the accuracy, one row per reading and arm, one column per band; last row: the best constant answer."""
    summary = study["sets"][name]
    header = tuple(f"{b} > {study['bands'][b]:g}\n{counted(n, 'site')}" for b, n in summary["band_sites"].items())
    rows = [(reading, *(percent(band) for band in bands.values())) for reading, bands in summary["accuracy"].items()]
    rows.append(("best constant answer", *(number(c and 100 * c) for c in summary["chance"].values())))
    return Table(f"{title_of(study, name)}: accuracy, % [95 % interval]", ("", *header), tuple(rows))


def sample_table(study: Mapping[str, Any], name: str) -> Table:
    """Return statistics of several responses per site, one row per statistic and arm, one column per band."""
    summary = study["sets"][name]
    rows = tuple((label, *(percent(band) for band in bands.values())) for label, bands in summary["samples"].items())
    return Table(f"{title_of(study, name)}: several responses, % [95 % interval]", ("", *summary["band_sites"]), rows)


def difference_table(study: Mapping[str, Any], name: str) -> Table:
    """Return the differences, one row per comparison and one column per band."""
    rows = tuple(
        (
            f"{change['reading']} − {change['baseline']}",
            *(f"{points(band)}, {p_value(band['p_value'])}" if band else NOTHING for band in change["bands"].values()),
        )
        for change in study["sets"][name]["differences"]
    )
    header = ("", *study["sets"][name]["band_sites"])
    return Table(f"{title_of(study, name)}: differences, points [95 % interval]", header, rows)


def power_of(differences: Sequence[Mapping[str, Any]]) -> str:
    """Return which differences the comparisons can see, by band, and how many seeds would see five points."""
    bands = dict.fromkeys(band for change in differences for band in change["bands"])
    found = []
    for band in bands:
        known = [own for change in differences if (own := change["bands"][band]) and own.get("detectable")]
        if not known:
            continue
        seen = sorted(own["detectable"] for own in known)
        seeds = [own["seeds_needed"] for own in known]
        enough = f"{max(seeds)} seeds" if all(seeds) else f"more sites, or more than {MOST_SEEDS} seeds"
        found.append(
            f"{band}, {100 * seen[0]:.1f} to {100 * seen[-1]:.1f} points or more, and {100 * AIM:g} points in every "
            f"comparison with {enough}"
        )
    if not found:
        return "What these comparisons can see is not known: nothing varies."
    return f"True differences that these comparisons see with a probability of {100 * POWER:.0f} %: {'; '.join(found)}."


def compute_table(study: Mapping[str, Any]) -> Table:
    """Return the training compute, one row per arm."""
    rows = tuple(
        (arm, f"{c['flops']:.3g}", f"{c['seconds']:,.0f}", f"{c['tokens']:,.0f}") for arm, c in study["compute"].items()
    )
    header = ("", "FLOPs", "processor seconds", "tokens learned from")
    return Table("Training compute a run, mean over seeds", header, rows)


def finetuned_table(study: Mapping[str, Any]) -> Table:
    """Return the accuracy on questions before and after RL, one row per arm."""
    found = study["finetuned"]
    rows = tuple(
        (arm, percent(own["before"]), percent(own["after"]), points(found["gains"][arm]))
        for arm, own in found["accuracy"].items()
    )
    title = f"{counted(found['questions'], 'held-out question')}: accuracy, % [95 % interval]"
    return Table(title, ("", "before", "after", "gain, points"), rows)


def finetuned_differences(study: Mapping[str, Any]) -> Table:
    """Return differences on questions, one row per arm that the reference is compared with."""
    rows = tuple(
        (f"{study['reference']} − {arm}", *(f"{points(d)}, {p_value(d['p_value'])}" for d in own.values()))
        for arm, own in study["finetuned"]["differences"].items()
    )
    return Table("Differences, points [95 % interval]", ("", "before", "after"), rows)
