from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.files import atomic_replacement, replace_text


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "Zoë"):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first")
    with pytest.raises(ZeroDivisionError), atomic_replacement(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "first"
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_not_written_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first")
    with pytest.raises(FileNotFoundError), atomic_replacement(path):
        pass
    assert path.read_text() == "first"
