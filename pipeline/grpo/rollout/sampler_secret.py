"""The secret that a sampling server and its trainer share, so that nobody else can sample or replace weights."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pipeline.config.errors import UserError

VARIABLE = "RPT_SAMPLER_TOKEN"


def shared_secret() -> str:
    """Return the value of `RPT_SAMPLER_TOKEN`, or else of this user's secret file, which is created if missing.

    Raises:
        UserError: the file cannot be created or read, or other users can read it.
    """
    if given := os.environ.get(VARIABLE):
        return given
    path = secret_file()
    hint = f"set the same {VARIABLE} for trainer and server"
    try:
        if not path.exists():
            _make(path)
        status = path.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise UserError(
                "the sampling server's secret is readable by other users", where=path, hint=f"delete it, or {hint}"
            )
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise UserError(
            f"the sampling server's secret cannot be read: {error.strerror}", where=path, hint=hint
        ) from error


def secret_file() -> Path:
    """Return the path of this user's secret file."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "rpt" / "sampler-token"


def _make(path: Path) -> None:
    """Create the file atomically, readable by this user alone; of two processes the second uses the first's file."""
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
