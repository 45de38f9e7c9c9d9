"""Pull: shards that were pushed, verified byte by byte, to where `rpt train` finds them.

Input:   a data set that `rpt push` wrote, on the hub or in a folder.
Output:  `work/<name>/materialize/<fingerprint>/` as the stage itself would have left it, `work/<name>/manifest.yaml`.
Command: rpt pull hf://datasets/owner/name|FOLDER [--work work]
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath

from pipeline.core.artifact import content_hash, point_current, read_record
from pipeline.core.config import Manifest, load
from pipeline.core.errors import IntegrityError
from pipeline.core.progress import say
from pipeline.export.croissant import checksums
from pipeline.export.remote import download


def pull(remote: str, *, work: Path, revision: str | None = None) -> Path:
    """Fetch and verify a data set. Returns the path of its manifest.

    Args:
        remote: `hf://datasets/owner/name` or a folder.
        work: folder of all manifests' artifacts.
        revision: of the hub's data set.

    Raises:
        UserError: there is none.
        IntegrityError: a file is missing, or its bytes are not those that were pushed.
    """
    source = download(remote, revision)
    verify(source)
    name = load(Manifest, source / "manifest.yaml").name
    fingerprint = json.loads((source / "record.json").read_text(encoding="utf-8"))["fingerprint"]
    target = work / name / "materialize" / str(fingerprint)
    if read_record(target) is None:
        scratch = target.with_name(f".{uuid.uuid4().hex[:12]}")
        try:
            shutil.copytree(source / "data", scratch)
            shutil.copyfile(source / "record.json", scratch / "record.json")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        read_record(target)
    point_current(target)
    shutil.copyfile(source / "manifest.yaml", work / name / "manifest.yaml")
    say(f"pull         verified  {target}")
    return work / name / "manifest.yaml"


def verify(folder: Path) -> None:
    """
    Raises:
        IntegrityError: a file that `croissant.json` lists is missing, or its bytes are others.
    """
    try:
        listed = checksums(json.loads((folder / "croissant.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, AttributeError) as error:
        raise IntegrityError("no readable metadata", where=folder / "croissant.json", mend="push it again") from error
    for path, sha256 in listed.items():
        file = folder / path
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise IntegrityError("a path leads out of the data set", where=path, mend="do not trust this data set")
        if not file.is_file() or content_hash(file) != sha256:
            what = "differs from what was pushed" if file.is_file() else "is missing"
            raise IntegrityError(f"a file {what}", where=file, mend="pull it again, or push it again")
