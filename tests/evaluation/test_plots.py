"""The picture of a run, from the lines that training logs."""

import json

from pipeline.evaluation.accuracy import progress_metrics
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.plots import Point, draw_progress, read_progress

PNG = b"\x89PNG\r\n\x1a\n"


def line(step, easy, hard=None):
    estimates = {"easy": Estimate(easy, easy - 0.1, easy + 0.1, 50, 10)}
    if hard is not None:
        estimates["hard"] = Estimate(hard, hard - 0.2, hard + 0.2, 20, 10)
    return json.dumps({"step": step, "loss": 0.5} | progress_metrics(estimates)) + "\n"


def test_progress_of_a_run_that_was_killed_and_resumed(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        line(0, 0.3, 0.2),
        '{"step": 1, "loss": 0.4}\n',
        line(2, 0.4),
        line(4, 0.5),
        line(2, 0.45),
        '{"step": 6, "ev',
    ]
    metrics.write_text("".join(lines))
    series = read_progress(metrics, ["easy", "medium", "hard"])
    assert list(series) == ["easy", "hard"], "a band without sites has no line"
    assert [(p.step, p.value) for p in series["easy"]] == [(0, 0.3), (2, 0.45), (4, 0.5)]
    assert series["hard"] == [Point(0, 0.2, 0.0, 0.4)]


def test_no_evaluation_no_lines(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 0.4}\n\n')
    assert read_progress(metrics, ["easy"]) == {}


def test_pictures_show_every_band_and_the_direct_baseline(tmp_path):
    series = {
        "easy": [Point(0, 0.3, 0.25, 0.35), Point(50, 0.5, 0.45, 0.55)],
        "hard": [Point(0, 0.1, 0.0, 0.2), Point(50, 0.7, 0.6, 0.8)],
    }
    png, svg = draw_progress(series, {"easy": 0.45, "hard": 0.3}, tmp_path, "toy")
    assert png.read_bytes().startswith(PNG)
    drawing = svg.read_text()
    for text in ("easy", "hard"):
        assert f"<!-- {text} -->" in drawing
    for text in ("reasoning", "direct before", "training step"):
        assert drawing.count(f"<!-- {text} -->") == 2, "in a panel of every band, so that no curve lies under another"
    assert "medium" not in drawing
    assert "<!-- 80 -->" in drawing, "the common axis reaches the highest end of any interval"
    first = [path.read_bytes() for path in (png, svg)]
    assert [path.read_bytes() for path in draw_progress(series, {"easy": 0.45, "hard": 0.3}, tmp_path, "toy")] == first
