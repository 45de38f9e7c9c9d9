"""An index of the rollouts of a run, in memory: the small columns of every file, so that lists need not read texts.

Shape names: R rollouts, in the order of their steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.selection.sites import BANDS
from pipeline.task.reward import REASONS

OUTCOMES = (*REASONS, "other")
"""Outcomes by the numbers that the index stores."""
BAND_NAMES = ("unknown", "none", *BANDS)
"""Bands by the numbers that the index stores; rollouts of older versions do not say theirs."""
SMALL = ("step", "site_id", "sample", "reward", "reason", "length")
TEXTS = ("context", "response", "target", "prediction", "advantage", "finished")
SETTLING = 3.0
"""Seconds for which a folder that has changed is listed again, because its time of change is coarse."""

Ints = NDArray[np.int32]


@dataclass(frozen=True, order=True)
class RolloutFile:
    """A file at a certain state."""

    path: Path
    modified: int
    size: int

    @classmethod
    def at(cls, path: Path) -> RolloutFile:
        """Return the present state of a file."""
        status = path.stat()
        return cls(path, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Rollouts:
    """The small columns of all rollouts that were read, and where each of them stands."""

    step_R: Ints
    site_R: Ints
    """Number of the site in `RolloutIndex.site_ids`."""
    sample_R: Ints
    reward_R: NDArray[np.float32]
    length_R: Ints
    outcome_R: NDArray[np.uint8]
    """Number in `OUTCOMES`."""
    band_R: NDArray[np.uint8]
    """Number in `BAND_NAMES`."""
    file_R: Ints
    """Number of the file in `files`."""
    row_R: Ints
    """Row in the file."""
    files: tuple[RolloutFile, ...]

    def __len__(self) -> int:
        return len(self.step_R)


Columns = Mapping[str, NDArray[Any]]


class RolloutIndex:
    """The rollouts of a run; files that a running training adds are read when they come, replaced ones again.

    Attributes:
        site_ids: sites by their numbers.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "rollouts"
        self._columns: dict[RolloutFile, Columns | None] = {}
        self._waiting: set[RolloutFile] = set()
        self._changed_at = -1
        self._numbers: dict[str, int] = {}
        self._joined: Rollouts | None = None
        self._lock = threading.Lock()
        self.site_ids: list[str] = []

    def refresh(self, seconds: float) -> bool:
        """Read new and changed files, newest first, at least one and for some seconds; return True if none is left."""
        end = time.monotonic() + seconds
        with self._lock:
            self._list()
            while self._waiting:
                file = max(self._waiting)
                self._columns[file] = self._read(file)
                self._waiting.discard(file)
                self._joined = None
                if time.monotonic() >= end:
                    break
            return not self._waiting

    @property
    def progress(self) -> tuple[int, int]:
        """Return how many files were read, and how many there are."""
        return len(self._columns), len(self._columns) + len(self._waiting)

    @property
    def unreadable(self) -> list[str]:
        """Return the names of files that are no tables of rollouts."""
        return sorted(file.path.name for file, columns in list(self._columns.items()) if columns is None)

    def rollouts(self) -> Rollouts:
        """Return what has been read."""
        with self._lock:
            if self._joined is None:
                self._joined = _joined(self._columns)
            return self._joined

    def number_of(self, site_id: str) -> int | None:
        """Return the number of a site; None if it has no rollout."""
        return self._numbers.get(site_id)

    def _list(self) -> None:
        """Note the files that are new or have changed, and forget those that are gone."""
        try:
            changed_at = self._folder.stat().st_mtime_ns
            if changed_at == self._changed_at and time.time() - changed_at / 1e9 > SETTLING:
                return
            files = {RolloutFile.at(path) for path in self._folder.glob("step-*.parquet")}
        except OSError:  # no folder, or a file that is gone already
            return
        self._changed_at = changed_at
        for gone in self._columns.keys() - files:
            del self._columns[gone]
            self._joined = None
        self._waiting = files - self._columns.keys()

    def _read(self, file: RolloutFile) -> Columns | None:
        """Return the columns of a file as the index stores them; None if it is no table of rollouts."""
        try:
            frame = pl.read_parquet(file.path, columns=[*SMALL, *({"band"} & set(pl.read_parquet_schema(file.path)))])
            if frame.select(SMALL).null_count().sum_horizontal().sum():
                return None
            names = frame["site_id"].unique(maintain_order=True).to_list()
            new = [name for name in names if name not in self._numbers]
            self.site_ids += new
            self._numbers |= {name: number for number, name in enumerate(new, len(self._numbers))}
            sites = frame["site_id"].replace_strict(
                names, [self._numbers[name] for name in names], return_dtype=pl.Int32
            )
            band = frame["band"] if "band" in frame.columns else pl.Series(["unknown"] * frame.height, dtype=pl.String)
            return {
                **{name: frame[name].cast(pl.Int32).to_numpy() for name in ("step", "sample", "length")},
                "reward": frame["reward"].cast(pl.Float32).to_numpy(),
                "site": sites.to_numpy(),
                "outcome": _numbered(frame["reason"], OUTCOMES, "other"),
                "band": _numbered(band, BAND_NAMES, "unknown"),
            }
        except (OSError, ValueError, TypeError, pl.exceptions.PolarsError):
            return None


def texts(rollouts: Rollouts, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return `TEXTS` of some rollouts, in their order; only the files that hold them are read.

    Raises:
        UserError: a file is gone, damaged or was replaced since it was indexed.
    """
    found: dict[int, dict[str, Any]] = {}
    by_file: dict[int, list[int]] = {}
    for row in rows:
        by_file.setdefault(int(rollouts.file_R[row]), []).append(row)
    for number, own in by_file.items():
        path, first = rollouts.files[number].path, int(rollouts.row_R[own].min())
        try:
            part = (
                pl.scan_parquet(path).slice(first, int(rollouts.row_R[own].max()) - first + 1).select(TEXTS).collect()
            )
            found |= {row: part.row(int(rollouts.row_R[row]) - first, named=True) for row in own}
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError("rollouts that were there cannot be read now", where=path, hint="reload") from error
    return [found[row] for row in rows]


def _numbered(names: pl.Series, order: Sequence[str], default: str) -> NDArray[np.uint8]:
    """Return the number of each name in `order`."""
    numbers = dict(zip(order, range(len(order)), strict=True))
    return names.replace_strict(numbers, default=numbers[default], return_dtype=pl.UInt8).to_numpy()


def _joined(read: Mapping[RolloutFile, Columns | None]) -> Rollouts:
    files = tuple(file for file in sorted(read) if read[file] is not None)
    columns = [read[file] or {} for file in files]
    sizes = [len(own["step"]) for own in columns]

    def joined(name: str, kind: type) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype=kind), *(own[name] for own in columns)])

    return Rollouts(
        joined("step", np.int32),
        joined("site", np.int32),
        joined("sample", np.int32),
        joined("reward", np.float32),
        joined("length", np.int32),
        joined("outcome", np.uint8),
        joined("band", np.uint8),
        np.repeat(np.arange(len(files), dtype=np.int32), sizes),
        np.concatenate([np.empty(0, dtype=np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)]),
        files,
    )
