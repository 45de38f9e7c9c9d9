"""Read a growing file of JSON lines: each call returns the lines that were added since the last one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_READ = 32 << 20
"""Bytes that one call reads at most; the next one reads on."""
MAX_LINE = 1 << 20
"""Bytes of the longest line that is parsed; longer ones are counted as unreadable."""
MARK = 64
"""Bytes before the offset that are compared, so that a file written anew in place is noticed."""


@dataclass
class Added:
    """What a call read."""

    rows: list[dict[str, Any]]
    """Whole lines that are JSON objects."""
    restarted: bool
    """True if the file was replaced, cut or written anew: `rows` are then its first ones, and earlier ones void."""
    more: bool
    """True if there is more to read at once."""


class JsonLines:
    """A file of JSON lines that another process appends to, and may replace (a resumed run does).

    A last line without its line feed is still being written: it is left for the next call.

    Attributes:
        unreadable: lines that were not JSON objects.
        offset: bytes read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = (0, 0)
        self._mark = b""
        self._overlong = False
        self.offset = 0
        self.unreadable = 0

    def read(self) -> Added:
        """Return what was added since the last call; a file that cannot be read adds nothing."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                restarted = self._is_another((status.st_dev, status.st_ino), status.st_size, file)
                if restarted:
                    self.offset, self.unreadable, self._mark, self._overlong = 0, 0, b"", False
                self._file_id = (status.st_dev, status.st_ino)
                file.seek(self.offset)
                read = file.read(MAX_READ)
        except OSError:
            return Added([], False, False)
        return Added(self._take(read), restarted, len(read) == MAX_READ)

    def _is_another(self, file_id: tuple[int, int], size: int, file: Any) -> bool:
        if not self.offset:
            return False
        if file_id != self._file_id or size < self.offset:
            return True
        file.seek(self.offset - len(self._mark))
        return bool(file.read(len(self._mark)) != self._mark)

    def _take(self, read: bytes) -> list[dict[str, Any]]:
        """Parse the whole lines of `read` and move the offset behind them."""
        end = read.rfind(b"\n") + 1
        rows = []
        for line in read[:end].split(b"\n")[:-1]:
            if self._overlong:
                self._overlong = False
            elif (row := _parsed(line)) is not None:
                rows.append(row)
            elif line.strip():
                self.unreadable += 1
        if len(read) - end > MAX_LINE:  # skip what is read of an overlong line now, and the rest of it later
            self.unreadable += not self._overlong
            self._overlong, end = True, len(read)
        self.offset += end
        self._mark = (self._mark + read[:end])[-MARK:]
        return rows


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line as a JSON object; None if it is not one."""
    if len(line) > MAX_LINE:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
