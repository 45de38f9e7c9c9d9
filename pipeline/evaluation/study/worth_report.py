"""The report of a comparison of selections, as Markdown and as one offline HTML file: a function of its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.progress import counted
from pipeline.evaluation.plots import COLOURS, new_figure, save_svg
from pipeline.evaluation.report import NOTHING, Table, p_value, percent, points
from pipeline.evaluation.report_blocks import Block, Figure, Heading, Paragraph, write_blocks

CURVES = "curves.svg"


def write_report(found: Mapping[str, Any], out: Path) -> Path:
    """Draw the curves, write `report.md` and `report.html`, and return the path of `report.html`."""
    draw_curves(found, out / CURVES)
    return write_blocks(list(report(found)), out)


def report(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the blocks of the report from top to bottom."""
    yield Heading("What the selections are worth")
    for comparison in found["comparisons"]:
        yield Paragraph(f"{comparison['says']} {comparison['gradient']['says']}")
    yield Paragraph(
        f"{counted(found['power']['seeds'], 'seed')} of each selection, {found['tokens']:,} sampled tokens a run. What "
        f"is compared is held-out accuracy by reasoning at {found['band']} sites, the same for all. Before the runs: "
        f"{found['planned']}. Measured: the seeds of a selection differ by {100 * found['spread']:.1f} points."
    )
    yield selection_table(found)
    yield accuracy_table(found)
    yield comparison_table(found)
    yield sampling_table(found)
    yield Paragraph(
        "Only a group whose responses differ in reward has a gradient; sampled tokens count whether it has one or not. "
        "The difference is that to the first selection, in points; only seeds vary in it. "
        "The last column: when a run's curve first is where that of "
        f"`{next(iter(found['selections']))}` with the same seed ends; in that one's own row it is noise alone."
    )
    yield Heading("Learning curves")
    yield Figure(CURVES, "accuracy by reasoning over sampled tokens, by selection, with intervals")
    yield Paragraph(
        "Means over seeds with 95 % intervals (Student's t). They are measured on the few sites of "
        "`evaluate.progress_sites`, other ones for every seed, so they are rougher than the tables."
    )
    yield Paragraph(
        "A difference is claimed only if its 95 % interval leaves out 0 and it is at least as large as the smallest "
        "that the comparison sees. Intervals are not corrected for the number of selections."
    )


def selection_table(found: Mapping[str, Any]) -> Table:
    """Return the rule of each selection."""
    return Table("Selections", ("", "rule"), tuple(found["selections"].items()), is_text=True)


def accuracy_table(found: Mapping[str, Any]) -> Table:
    """Return the accuracy after training, one row per selection, one column per band."""
    header = tuple(f"{b} > {found['bands'][b]:g}\n{counted(n, 'site')}" for b, n in found["band_sites"].items())
    rows = tuple((name, *(percent(band) for band in bands.values())) for name, bands in found["accuracy"].items())
    return Table("Accuracy by reasoning, % [95 % interval]", ("", *header), rows)


def comparison_table(found: Mapping[str, Any]) -> Table:
    """Return the differences to the first selection, one row per selection, with what each comparison sees."""
    rows = []
    for comparison in found["comparisons"]:
        cells = [f"{points(b)}, {p_value(b['p_value'])}" if b else NOTHING for b in comparison["bands"].values()]
        sees = comparison["bands"][found["band"]]["detectable"]
        told = NOTHING if sees is None else f"{100 * sees:.1f}"
        rows.append((f"{comparison['selection']} − {comparison['baseline']}", *cells, told, comparison["verdict"]))
    header = ("", *found["band_sites"], f"sees at {found['band']}", "verdict")
    return Table("Differences, points [95 % interval]", header, tuple(rows))


def sampling_table(found: Mapping[str, Any]) -> Table:
    """Return what the sampled tokens came to, one row per selection."""
    against = {comparison["selection"]: comparison["gradient"] for comparison in found["comparisons"]}
    rows = []
    for name, own in found["sampling"].items():
        change = against.get(name)
        told = (f"{points(change)}, {p_value(change['p_value'])}", change["verdict"]) if change else (NOTHING, NOTHING)
        reached = own["to_baseline"]
        missed, runs = sum(share is None for share in reached["by_seed"]), len(reached["by_seed"])
        tokens = f"never in {missed} of {runs} runs" if missed else percent(reached)
        rows.append((name, percent(own["gradient"]), *told, tokens))
    baseline = next(iter(found["selections"]))
    header = ("", "groups with a gradient", "difference", "verdict", f"tokens to the last accuracy of {baseline}")
    return Table("Sampling, % [95 % interval]", header, tuple(rows))


def draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """Draw the learning curve of each selection with its interval."""
    figure, axes = new_figure()
    for number, (name, curve) in enumerate(found["curves"].items()):
        colour = COLOURS[number % len(COLOURS)]
        tokens, value, low, high = ([row[key] for row in curve] for key in ("tokens", "value", "low", "high"))
        axes.fill_between(tokens, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.12, lw=0)
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        axes.plot(tokens, [100 * v for v in value], style, color=colour, lw=2, label=name)
    axes.set(xlabel="sampled tokens", ylabel=f"held-out accuracy at {found['band']} sites, %", ylim=(0, None))
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.legend(frameon=False)
    save_svg(figure, path)
