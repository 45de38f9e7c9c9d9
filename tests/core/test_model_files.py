"""Model folders: which weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.core.model_files import TOKENIZER_FILES, resolve_model


def test_weights_that_are_only_pickled_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"never read")
    with pytest.raises(UserError, match="weights are pickled") as refused:
        resolve_model(str(tmp_path))
    assert refused.value.where == str(pickled) and "safetensors" in refused.value.hint
    assert resolve_model(str(tmp_path), files=TOKENIZER_FILES) == tmp_path  # a tokenizer alone may be read

    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve_model(str(tmp_path)) == tmp_path
