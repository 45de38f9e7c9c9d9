"""Where data sets are pushed to and pulled from: a data set of the hub (`hf://datasets/owner/name`), or a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.errors import UserError

HUB = "hf://datasets/"


def repository(remote: str) -> str | None:
    """`owner/name` of a data set of the hub; None: a folder.

    Raises:
        UserError: begins like one and is none.
    """
    if not remote.startswith(HUB):
        return None
    name = remote.removeprefix(HUB).strip("/")
    if name.count("/") != 1:
        raise UserError("not a data set of the hub", where=remote, mend=f"write {HUB}owner/name, or give a folder")
    return name


def upload(folder: Path, remote: str, message: str) -> None:
    """Replace what lies at `remote` by `folder`; on the hub in one commit.

    Raises:
        UserError: the hub cannot be reached or refuses, or a folder there holds something else.
    """
    name = repository(remote)
    if name is None:
        target = Path(remote).expanduser()
        if target.exists() and any(target.iterdir()) and not (target / "croissant.json").exists():
            raise UserError("the folder holds something else", where=target, mend="choose another one")
        scratch = target.with_name(f".{target.name}.pushed")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(folder, scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True, private=True)
        api.upload_folder(
            repo_id=name, repo_type="dataset", folder_path=folder, commit_message=message, delete_patterns=["data/*"]
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError("the hub did not take it", where=remote, mend=f"check `HF_TOKEN`: {reason}") from error


def download(remote: str, revision: str | None) -> Path:
    """A folder with what lies at `remote`.

    Raises:
        UserError: there is nothing, or the hub cannot be reached.
    """
    name = repository(remote)
    if name is None:
        folder = Path(remote).expanduser()
        if not (folder / "croissant.json").is_file():
            raise UserError("no pushed data set", where=folder, mend="push one with `rpt push`")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            "the hub did not give it", where=remote, mend=f"check the name and `HF_TOKEN`: {reason}"
        ) from error
