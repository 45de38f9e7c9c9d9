"""The secret that a sampling server and its trainer share: nobody else may sample, or hand over weights."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pipeline.config.errors import UserError

VARIABLE = "RPT_SAMPLER_TOKEN"


def shared_secret() -> str:
    """The value of `RPT_SAMPLER_TOKEN`, or else of this user's own file, made by whoever of the two asks first.

    Raises:
        UserError: the file cannot be made or read, or others may read it.
    """
    if given := os.environ.get(VARIABLE):
        return given
    path = secret_file()
    mend = f"give trainer and server the same {VARIABLE}"
    try:
        if not path.exists():
            _make(path)
        status = path.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise UserError("others may know the sampling server's secret", where=path, hint=f"delete it, or {mend}")
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise UserError(f"the sampling server's secret: {error.strerror}", where=path, hint=mend) from error


def secret_file() -> Path:
    """Where it lies."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "rpt" / "sampler-token"


def _make(path: Path) -> None:
    """Whole or not there, readable by this user alone; who comes second takes what the first made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))
    try:
        os.link(scratch, path)
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
