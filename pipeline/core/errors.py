"""Errors a user can act on: what happened, where, and how to mend it."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can mend. The command line prints it as one line and exits with `exit_code`.

    Example:
        >>> str(UserError("source file not found", where="corpus.jsonl", mend="check `corpus.source`"))
        'source file not found: corpus.jsonl (check `corpus.source`)'
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, str(where), mend
        located = f"{what}: {where}" if self.where else what
        super().__init__(f"{located} ({mend})" if mend else located)


class IntegrityError(UserError):
    """Published bytes are not the bytes that were recorded."""

    exit_code = 3
