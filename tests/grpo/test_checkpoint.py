from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.grpo.checkpoint import resume, superfluous


def saved(folder: Path, **state: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"identity": {"shards": "a"}, **state}))
    return folder


def test_what_cannot_be_redistributed_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoints" / "step-000002", step=2, layout={"zero_stage": 2, "ranks": 4})
    with pytest.raises(UserError, match=r"ZeRO-2 resumes on as many ranks as it saved on: 4, not 2.*--ranks 4"):
        resume(None, folder, {"shards": "a"}, {"zero_stage": 2, "ranks": 2})
    with pytest.raises(UserError, match="zero_stage: 2 → 3"):
        resume(None, folder, {"shards": "a"}, {"zero_stage": 3, "ranks": 4})
    with pytest.raises(UserError, match="shards: 'a' → 'b'"):
        resume(None, folder, {"shards": "b"}, {"zero_stage": 2, "ranks": 4})


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    accuracies = [None, 0.5, 0.7, None, 0.7, 0.6]
    folders = [saved(tmp_path / f"step-{i}", accuracy=accuracy) for i, accuracy in enumerate(accuracies)]
    assert [folder.name for folder in superfluous(folders, 2)] == ["step-0", "step-1", "step-3"]
    assert superfluous(folders[:2], 2) == []
