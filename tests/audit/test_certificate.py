"""The certificate as `rpt audit`, `rpt stats` and the terminal show it."""

from __future__ import annotations

import re

import pytest

from commands.certificate import certificate_tables, warn
from pipeline.audit import svg
from pipeline.core.marks import read_certificate
from tests.audit.corpus import Audited
from tests.audit.test_terminal import printed, rpt


def test_the_report_and_the_statistics_have_it(audited: Audited) -> None:
    found = read_certificate(audited.lineage.select)
    assert found is not None and found["findings"]
    code, counted = rpt(audited, audited.work, "stats")
    assert code == 0 and counted["certificate"] == audited.summary["certificate"] == found
    page = audited.report.read_text(encoding="utf-8")
    section = page[page.index('<section id="certificate">') : page.index('<section id="scores">')]
    assert f'class="broken">{found["verdict"]}</b>' in section
    assert f"{found['bits_per_byte']['unigram']:.3f}</td>" in section
    assert section.count("<circle") == sum(row["positions"] > 0 for row in found["calibration"]["bins"])


def test_the_terminal_shows_it(audited: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_certificate(audited.lineage.select)
    assert found is not None
    shown = printed(certificate_tables(found))
    assert f"{found['bits_per_byte']['zlib']:.3f}" in shown and f"certificate: {found['verdict']}" in shown
    warn(audited.lineage.select)
    said = capsys.readouterr().err
    assert all(finding["says"] in said for finding in found["findings"])
    warn(audited.other.select)  # has none
    assert capsys.readouterr().err == ""


def test_a_selection_without_one(audited: Audited) -> None:
    assert read_certificate(audited.other.select) is None


def test_points_of_the_calibration_plot() -> None:
    """At 1.4 nats of 2.8 and a surprise of half the height; a bin without positions has no point."""
    bins = [
        {"from": 1.4, "positions": 3, "entropy": 1.4, "surprise": 1.4},
        {"from": 2.6, "positions": 12, "entropy": 4.0, "surprise": 2.8},  # beyond the last edge
        {"from": 0.0, "positions": 0, "entropy": None, "surprise": None},
    ]
    middle, last = re.findall(r'<circle class="kept" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg.calibration(bins))
    width, base = svg.WIDTH - svg.LEFT - 4, svg.HEIGHT - svg.BOTTOM
    tall = base - svg.TOP
    assert middle == (
        f"{svg.LEFT + width / 2:.1f}",
        f"{base - tall * 1.4 / 4:.1f}",
        "5.0",
    )  # half the radius: a quarter
    assert last == (f"{svg.LEFT + width:.1f}", f"{base - tall * 2.8 / 4:.1f}", "7.5")
