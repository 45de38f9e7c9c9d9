"""Blocks of a report, and their rendering as Markdown or as one offline HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.invisible import escape_invisible
from pipeline.evaluation.report import Table


@dataclass(frozen=True)
class Heading:
    """Heading of a section; the first one is the title of the report."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Paragraph of text."""

    text: str


@dataclass(frozen=True)
class Figure:
    """SVG file in the same folder as the report, with its alternative text."""

    file: str
    alt: str


@dataclass(frozen=True)
class Trace:
    """Literal text under a title, such as a response."""

    title: str
    text: str


Block = Heading | Paragraph | Figure | Trace | Table


def write_blocks(found: Sequence[Block], out: Path) -> Path:
    """Write `report.md` and `report.html` into the folder of the figures, and return the path of `report.html`."""
    (out / "report.md").write_text(markdown(found), encoding="utf-8")
    page = out / "report.html"
    page.write_text(as_html(found, out), encoding="utf-8")
    return page


def markdown(found: Sequence[Block]) -> str:
    """Return the blocks as Markdown."""
    parts, level = [], "#"
    for block in found:
        match block:
            case Heading(text):
                parts.append(f"{level} {text}")
                level = "##"
            case Paragraph(text):
                parts.append(text)
            case Figure(file, alt):
                parts.append(f"![{alt}]({file})")
            case Trace(title, text):
                literal = escape_invisible(text).replace("```", "` ` `")
                parts.append(f"**{title}**\n\n```\n{literal}\n```")
            case Table():
                parts.append(block.markdown())
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root {
  color-scheme: light dark;
  --paper: light-dark(#fbfaf7, #15161a); --surface: light-dark(#f3f1ec, #24272d); --line: light-dark(#e6e2d9, #2d3037);
  --ink: light-dark(#221f1a, #f1eee9); --ink-2: light-dark(#625d54, #aeb0b5);
  --shadow: light-dark(#00000040, #000000b0);
}
body { font: 15px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 2rem clamp(.9rem, 3vw, 2rem) }
body { color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2; font-weight: 600 }
h2 { margin: 3rem 0 .5rem }
p { max-width: 44rem }
.scroll {
  overflow-x: auto; margin: 1.2rem 0;
  background: linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) 0 0 / .6rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) 100% 0 / .6rem 100% no-repeat scroll;
}
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; min-width: 60% }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { font-weight: 500; color: var(--ink-2); vertical-align: bottom }
td { vertical-align: top }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: normal; min-width: 7rem }
pre { background: var(--surface); padding: .7rem; border-radius: 6px; white-space: pre-wrap }
figure { margin: 1rem 0 }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
@media (max-width: 700px) {
  .words thead { display: none }
  .words tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line) }
  .words td { display: block; min-width: 0; padding: .1rem 0; border: 0 }
  .words td:first-child { font-weight: 600 }
}
@media (prefers-color-scheme: dark) { svg { filter: invert(.91) hue-rotate(180deg) } }
"""
"""Colours and sizes of the other reports (`pipeline/audit/assets/base.css`). The dark scheme inverts figures, which are
drawn on white, and keeps their hues."""


def as_html(found: Sequence[Block], out: Path) -> str:
    """Return the blocks as one HTML file, with the SVG files of the folder `out` inside."""
    parts, level = [], 1
    for block in found:
        match block:
            case Heading(text):
                parts.append(f"<h{level}>{_text(text)}</h{level}>")
                level = 2
            case Paragraph(text):
                parts.append(f"<p>{_text(text)}</p>")
            case Figure(file, alt):
                drawing = (out / file).read_text(encoding="utf-8")
                labelled = f'<svg role="img" aria-label="{_text(alt)}"'
                parts.append(f"<figure>{drawing[drawing.index('<svg') :].replace('<svg', labelled, 1)}</figure>")
            case Trace(title, text):
                parts.append(f'<h3>{_text(title)}</h3><pre tabindex="0"><bdi>{_text(text)}</bdi></pre>')
            case Table():
                parts.append(_table(block))
    body = "\n".join(parts)
    title = next((block.text for block in found if isinstance(block, Heading)), "Report")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def _text(text: str) -> str:
    """Return text as HTML shows it, with marks for invisible characters and those that would turn the line around."""
    return html.escape(escape_invisible(text))


def _table(table: Table) -> str:
    def cell(text: str, tag: str) -> str:
        return f"<{tag}>{_text(text).replace(chr(10), '<br>')}</{tag}>"

    head = "".join(cell(name, "th") for name in table.header)
    rows = "".join(f"<tr>{''.join(cell(text, 'td') for text in row)}</tr>\n" for row in table.rows)
    kind = ' class="words"' if table.is_text else ""
    title = _text(table.title)
    body = f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table{kind}>{body}</table></div>'
