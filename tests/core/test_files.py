from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from pipeline.core.files import atomic_replacement, replace_text, size_of


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


def test_the_size_of_a_folder_counts_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "a" / "b" / "three").write_bytes(b"333")
    (tmp_path / "a" / "nowhere").symlink_to("gone")
    assert size_of(tmp_path) == 4
    assert size_of(tmp_path / "one") == 1
    assert size_of(tmp_path / "gone") == 0


def test_the_size_of_a_folder_can_be_asked_while_a_stage_removes_from_it(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    parts = tmp_path / "parts" / "00000"

    def publish_and_remove() -> None:
        for _ in range(300):
            parts.mkdir(parents=True)
            for name in "abc":
                (parts / name).write_bytes(b"part")
            for name in "abc":
                (parts / name).unlink()
            parts.rmdir()
            parts.parent.rmdir()

    stage = Thread(target=publish_and_remove)
    stage.start()
    sizes = set()
    while stage.is_alive():
        sizes.add(size_of(tmp_path))
    stage.join()
    assert sizes <= {4, 8, 12, 16} and size_of(tmp_path) == 4
