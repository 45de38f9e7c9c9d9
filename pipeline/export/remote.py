"""Pushes data sets to and pulls them from a data set on the Hub (`hf://datasets/owner/name`) or a folder."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import content_hash
from pipeline.core.hub import hub_errors, snapshot
from pipeline.export.croissant import METADATA, checksums, is_pushed
from pipeline.export.outside import check_path, has_links

HUB = "hf://datasets/"


def repository(remote: str) -> str | None:
    """Return the `owner/name` of a data set on the Hub, or None for a folder.

    Raises:
        UserError: the address starts with `HUB`, but is not `owner/name`.
    """
    if not remote.startswith(HUB):
        return None
    name = remote.removeprefix(HUB).strip("/")
    if name.count("/") != 1:
        raise UserError("not a data set on the Hub", where=remote, hint=f"write {HUB}owner/name or a folder")
    return name


# -------------------------------------------------------------------------------------------------------- push


def upload(folder: Path, remote: str, message: str) -> None:
    """Upload `folder` to `remote`, as one commit on the Hub. Deletes only files that an earlier push listed.

    Args:
        folder: the files of the data set.
        remote: an address on the Hub, or a folder.
        message: the commit's message on the Hub.

    Raises:
        UserError: the Hub is unreachable or refuses, or `remote` holds files that were not pushed.
    """
    name = repository(remote)
    new = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if name is None:
        _into_folder(folder, new, Path(remote).expanduser())
        return
    from huggingface_hub import HfApi

    with hub_errors(name, "dataset"):
        api = HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True, private=True)
        present = api.list_repo_files(name, repo_type="dataset")
        listed: set[str] = set()
        if METADATA in present:
            listed = _listed(Path(api.hf_hub_download(name, METADATA, repo_type="dataset")))
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            commit_message=message,
            delete_patterns=superseded(present, listed, new, remote),
        )


def superseded(present: Collection[str], listed: Collection[str], new: Collection[str], where: object) -> list[str]:
    """Return the files to delete: those that an earlier push listed and this one does not have.

    Args:
        present: paths that exist at the destination.
        listed: paths that the earlier push listed.
        new: of what is put there now.
        where: for messages.

    Raises:
        UserError: something else is in the place of a new file, or would be read as one of the shards.
    """
    foreign = [path for path in sorted(set(present) - set(listed)) if path in new or path.startswith("data/")]
    if foreign:
        raise UserError(
            f"`{foreign[0]}` exists, but was not pushed", where=where, hint="move it, or choose another destination"
        )
    return sorted((set(listed) & set(present)) - set(new))


def _into_folder(folder: Path, new: Collection[str], target: Path) -> None:
    """Copy files to a folder, the metadata first, so that a killed push has listed its files and can be repeated."""
    listed: set[str] = set()
    if target.exists() and any(target.iterdir()):
        listed = _listed(target / METADATA) if (target / METADATA).is_file() else set()
        if not listed:
            raise UserError("the folder holds other files", where=target, hint="choose another folder")
    for path in {*listed, *new}:
        if has_links(target, path):
            raise UserError("a link is in the way", where=target / path, hint="remove it, or choose another folder")
    present = {path for path in {*listed, *new} if (target / path).exists()}
    present |= {path.relative_to(target).as_posix() for path in (target / "data").rglob("*") if not path.is_dir()}
    for path in superseded(present, listed, new, target):
        (target / path).unlink()
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
    scratch = target / f".{uuid.uuid4().hex[:12]}.pushed"
    try:
        for path in sorted(new, key=lambda path: path != METADATA):
            shutil.copyfile(folder / path, scratch)
            os.replace(scratch, target / path)
    finally:
        scratch.unlink(missing_ok=True)


def _listed(metadata: Path) -> set[str]:
    """Return the files that an earlier push listed in its metadata; none if something else wrote the metadata."""
    try:
        tree = json.loads(metadata.read_text(encoding="utf-8"))
        return {METADATA, *checksums(tree)} if is_pushed(tree) else set()
    except (ValueError, RecursionError, IntegrityError):
        return set()


# -------------------------------------------------------------------------------------------------------- pull


@dataclass(frozen=True)
class Fetched:
    """A data set on this machine, which is not trusted."""

    folder: Path
    cache: Path | None = None
    """The Hub's cache, which the files of the folder link to; None: links are refused."""

    def take(self, path: str, target: Path, sha256: str | None = None) -> None:
        """Copy the file `path` to `target`.

        Raises:
            IntegrityError: it is missing, a link that leads elsewhere, or its bytes have another hash.
        """
        source = self.folder / check_path(path)
        again = "pull or push it again"
        if not source.is_file():
            raise IntegrityError("a file is missing", where=source, hint=again)
        if self.cache is None and has_links(self.folder, path):
            raise IntegrityError("a link instead of a file", where=source, hint="do not trust this data set")
        if self.cache is not None and not source.resolve().is_relative_to(self.cache.resolve()):
            raise IntegrityError("a link leads out of the data set", where=source, hint="do not trust this data set")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if sha256 is not None and content_hash(target) != sha256:
            raise IntegrityError("a file differs from what was pushed", where=source, hint=again)


def download(remote: str, revision: str | None) -> Fetched:
    """Download the data set at `remote`.

    Args:
        remote: an address on the Hub, or a folder.
        revision: a branch, tag or commit on the Hub; None: the newest.

    Raises:
        UserError: there is no data set, or the Hub is unreachable.
    """
    name = repository(remote)
    if name is None:
        folder = Path(remote).expanduser()
        if not (folder / METADATA).is_file():
            raise UserError("not a pushed data set", where=folder, hint="push one with `rpt push`")
        return Fetched(folder)
    folder = snapshot(name, "dataset", revision)
    return Fetched(folder, cache=folder.parent.parent)
