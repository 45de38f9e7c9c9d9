"""A run's files are read as they grow, whatever is in them, and drawn with few points that keep every peak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.audit.board import tail
from pipeline.audit.board.curves import Curves
from pipeline.audit.board.downsample import extremes, means
from pipeline.audit.board.payload import payload
from pipeline.audit.board.run import Run, open_runs
from pipeline.audit.board.tail import JsonLines
from pipeline.config.errors import UserError
from pipeline.core.files import replace_text
from pipeline.task.reward import REASONS
from tests.browser.board_run import accuracy, append, metrics_row, write_evaluation, write_run


def series(run: Run, key: str) -> dict[str, dict[str, object]]:
    """The curves of a chart by their labels."""
    charts = {chart["key"]: chart for chart in payload([run])["charts"]}
    return {one["label"]: one for one in charts[key]["series"]} if key in charts else {}


def test_only_what_was_added_is_read_and_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    assert lines.read().rows == []
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n{"st')
    assert lines.read().rows == [{"step": 0}, {"step": 1}]
    assert lines.offset == 24
    assert lines.read().rows == []
    with path.open("ab") as file:
        file.write('ep": 2, "é": 3}\n'.encode())
    assert lines.read().rows == [{"step": 2, "é": 3}]
    assert lines.offset == path.stat().st_size


def test_reading_on_takes_the_new_bytes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    lines = JsonLines(path)
    lines.read()
    seen: list[tuple[int, int]] = []
    opened = Path.open

    def watched(self: Path, *arguments: object) -> object:
        file = opened(self, *arguments)  # type: ignore[call-overload]
        read, tell = file.read, file.tell
        monkeypatch.setattr(file, "read", lambda n: seen.append((tell(), len(got := read(n)))) or got, raising=False)
        return file

    with path.open("a") as file:
        file.write('{"step": 1000}\n')
    before = path.stat().st_size - 15
    monkeypatch.setattr(Path, "open", watched)
    assert lines.read().rows == [{"step": 1000}]
    assert seen == [(before - tail.MARK, tail.MARK), (before, 15)]


@pytest.mark.parametrize("replaced", ["shorter", "longer", "another file"])
def test_a_log_that_a_resume_cut_is_read_anew(tmp_path: Path, replaced: str) -> None:
    run = Run(write_run(tmp_path / "run", [metrics_row(step) for step in range(1, 9)]), "run")
    assert payload([run])["runs"][0]["step"] == 8
    kept = [metrics_row(step, lr=0.5) for step in range(1, 12 if replaced == "longer" else 4)]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if replaced == "another file":
        replace_text(run.folder / "metrics.jsonl", text + " " * 4000)
    else:
        (run.folder / "metrics.jsonl").write_text(text)
    assert payload([run])["runs"][0]["step"] == len(kept)
    assert series(run, "lr")["learning rate"]["y"] == [0.5] * len(kept)


def test_lines_that_are_none_of_ours_are_counted_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MAX_LINE", 2000)
    run = Run(write_run(tmp_path / "run", [metrics_row(1)]), "run")
    hostile = [
        b"\xff\xfe", b"[1, 2]", b"null", b'"text"', b"{", b"[" * 1500, b'{"step": 2, "x": "' + b"a" * 3000 + b'"}',
        b'{"step": -1}', b'{"step": true}', b'{"step": "3"}', b'{"step": 1e3}', b'{"reward/mean": 1}',
        b'{"step": 99999999999999999999}',
    ]  # fmt: skip
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\n".join(hostile) + b"\n\n")
        file.write(b'{"step": 2, "reward/mean": NaN, "grad_norm": 1e999, "lr": "0.1", "loss": true, "loss/kl": [1]}\n')
        file.write(b'{"step": 3, "reward/mean": 1' + b"0" * 400 + b', "<script>": 1}\n')
    found = payload([run])
    assert found["runs"][0]["unreadable"] == len(hostile)
    assert found["runs"][0]["step"] == 3
    assert series(run, "reward")["reward"]["x"] == [1]
    assert series(run, "lr") == {}
    json.dumps(found, allow_nan=False)


def test_a_line_without_an_end_is_skipped_without_being_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_LINE", 100)
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    path.write_bytes(b'{"step": 1}\n' + b"x" * 500)
    assert lines.read().rows == [{"step": 1}]
    assert lines.offset == 512
    with path.open("ab") as file:
        file.write(b"x" * 500 + b'\n{"step": 2}\n')
    assert lines.read().rows == [{"step": 2}]
    assert lines.unreadable == 1


@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6)), st.integers(6, 60))
def test_a_curve_of_few_points_keeps_its_ends_and_extremes(value_N: np.ndarray, points: int) -> None:
    chosen = extremes(value_N, points)
    assert len(chosen) <= points or len(value_N) <= points
    assert list(chosen) == sorted(set(chosen.tolist()))
    kept = value_N[chosen]
    assert (kept.min(), kept.max(), kept[0], kept[-1]) == (value_N.min(), value_N.max(), value_N[0], value_N[-1])
    drawn = means(value_N, points)
    assert len(drawn) == min(points, len(value_N))
    assert value_N.min() - 1e-6 <= drawn.min() and drawn.max() <= value_N.max() + 1e-6


def test_shares_by_outcome_add_up_to_one(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "run", [metrics_row(step) for step in range(3000)], steps=3000), "run")
    stacked = series(run, "outcomes")
    assert list(stacked) == ["match", "mismatch", "missing", "unfinished"]  # outcomes that never come are left out
    total = np.sum([one["y"] for one in stacked.values()], axis=0)
    assert len(total) == 800 and np.allclose(total, 1, atol=1e-4)
    assert stacked["unfinished"]["last"] == round(3 / 32, 5)
    assert len(series(run, "entropy")["entropy"]["x"]) <= 800
    assert series(run, "groups")["with a gradient"]["last"] == 0.25
    assert set(REASONS) >= {label.replace(" ", "_") for label in stacked}


def test_accuracy_has_its_interval_and_the_direct_baseline_once_it_is_known(tmp_path: Path) -> None:
    rows = [
        {"step": 0, **accuracy("easy", 0.3), **accuracy("hard", 0.1)},
        metrics_row(1),
        metrics_row(2, **accuracy("hard", 0.4)),
    ]
    run = Run(write_run(tmp_path / "run", rows), "run")
    first = payload([run])
    hard = series(run, "accuracy")["hard"]
    assert (hard["x"], hard["y"], hard["low"], hard["high"]) == ([0, 2], [0.1, 0.4], [0.0, 0.3], [0.2, 0.5])
    assert hard["level"] is None
    assert "charts" not in payload([run], first["version"])
    write_evaluation(run.folder, easy=0.36, hard=0.125)
    assert "charts" in payload([run], first["version"])
    assert {label: one["level"] for label, one in series(run, "accuracy").items()} == {"easy": 0.36, "hard": 0.125}


def test_time_left_comes_from_recent_steps(tmp_path: Path) -> None:
    rows = [metrics_row(step, **{"seconds/step": 9.0 if step <= 10 else 2.0}) for step in range(1, 31)]
    run = Run(write_run(tmp_path / "run", rows, steps=40), "run")
    summary = payload([run])["runs"][0]
    assert (summary["step"], summary["steps"], summary["left"], summary["finished"]) == (30, 40, 20.0, False)
    (run.folder / "policy").mkdir()
    summary = payload([run])["runs"][0]
    assert (summary["left"], summary["finished"]) == (None, True)


def test_runs_over_each_other_have_a_chart_for_each_curve(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "toy", [{"step": 0, **accuracy("hard", 0.1)}, metrics_row(1)])
    two = write_run(tmp_path / "b" / "toy", [metrics_row(1), metrics_row(2)])
    runs = open_runs([one, two])
    assert [run.name for run in runs] == ["a/toy", "b/toy"]
    charts = {chart["title"]: chart for chart in payload(runs)["charts"]}
    assert [(s["label"], s["slot"], s["x"]) for s in charts["Reward"]["series"]] == [
        ("a/toy", 0, [1]),
        ("b/toy", 1, [1, 2]),
    ]
    assert [s["label"] for s in charts["Held-out accuracy: hard"]["series"]] == ["a/toy"]
    assert not any(chart["stacked"] for chart in charts.values())
    append(two, [metrics_row(3)])
    assert payload(runs)["runs"][1]["step"] == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match="given twice"):
        open_runs([tmp_path, tmp_path / "." / ""])


@pytest.mark.parametrize(
    "text", ["[", "a: [", "&a [*a, *a]", "budget: {steps: many}", "budget: 3", "null", "!!python/object:os.x {}"]
)
def test_a_recipe_or_evaluation_that_cannot_be_read_is_left_out(tmp_path: Path, text: str) -> None:
    run = Run(write_run(tmp_path / "run", [metrics_row(1)]), "run")
    (run.folder / "recipe.yaml").write_text(text)
    (run.folder / "evaluation").mkdir()
    (run.folder / "evaluation" / "evaluation.json").write_text(text)
    assert payload([run])["runs"][0]["steps"] is None
    assert run.direct == {}


def test_curves_forget_what_a_later_line_replaces() -> None:
    curves = Curves()
    curves.add([{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "b": 5}, {"step": 3, "a": 3.0}, {"step": 2, "a": 9.0}])
    assert [values.tolist() for values in curves.of("a")] == [[1, 2], [1, 9]]
    assert [values.tolist() for values in curves.of("b")] == [[], []]
    assert curves.last("a") == 9 and curves.last("b") is None and list(curves.steps) == [1, 2]
