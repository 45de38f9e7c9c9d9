"""Errors a user can act on: what happened, where, and what to do."""

from __future__ import annotations

import errno
import os
import re


class UserError(Exception):
    """A problem the user can fix. The command line prints it as one line and exits with `exit_code`.

    Example:
        >>> str(UserError("source file not found", where="corpus.jsonl", hint="check `corpus.source`"))
        'source file not found: corpus.jsonl (check `corpus.source`)'
    """

    exit_code = 2

    def __init__(self, message: str, *, where: object = "", hint: str = "") -> None:
        self.message, self.where, self.hint = message, str(where), hint
        located = f"{message}: {where}" if self.where else message
        super().__init__(f"{located} ({hint})" if hint else located)


class IntegrityError(UserError):
    """Raised when published bytes differ from the recorded ones."""

    exit_code = 3


class RefusedError(UserError):
    """Raised when the certificate refuses a selection, or a comparison would not see what it is asked for."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message that has text, or its kind if none has.

    Example:
        >>> first_line(ValueError(" no such column\nat row 3")), first_line(EOFError())
        ('no such column', 'EOFError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_TORCH_WROTE_LESS = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing|iostream error")


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error means that the disk, a quota or the largest size of a file is exhausted.

    Libraries written in other languages raise exceptions without an `errno`; torch only reports that a file has fewer
    bytes than it wrote.

    Example:
        >>> disk_is_full(OSError(errno.ENOSPC, "")), disk_is_full(RuntimeError("I/O error: No space left on device"))
        (True, True)
        >>> disk_is_full(RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 2304 vs 2196"))
        True
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in codes:
        return True
    return any(os.strerror(code) in str(error) for code in codes) or bool(_TORCH_WROTE_LESS.search(str(error)))


_REFUSALS = {
    errno.EMFILE: "raise the limit: `ulimit -n 4096`",
    errno.ENFILE: "close other programs, or raise the machine's limit",
    errno.ENOMEM: "free some memory",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EIO: "check the disk",
}


def refused(error: BaseException) -> str | None:
    """Return why the system refused to open or read a file, and what to do; None for any other error.

    Example:
        >>> refused(OSError(errno.EMFILE, "Too many open files"))
        'Too many open files: raise the limit: `ulimit -n 4096`'
        >>> refused(OSError("Corrupt snappy compressed data."))
    """
    code = error.errno if isinstance(error, OSError) else None
    return None if code is None or code not in _REFUSALS else f"{os.strerror(code)}: {_REFUSALS[code]}"


def as_user_error(error: Exception) -> UserError | None:
    """Return the error as a `UserError`, or None if it is a bug.

    Also converts what the system refuses: no space, no permission, a file in place of a folder.

    Example:
        >>> str(as_user_error(PermissionError(errno.EACCES, "Permission denied", "/root/work")))
        'Permission denied: /root/work (choose another folder with --work, --run or --out)'
    """
    if isinstance(error, UserError):
        return error
    if disk_is_full(error):
        return UserError("the disk is full", where=error, hint="free some space and run again")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError("file cannot be opened", where=error.filename or "", hint=refused(error) or "")
    codes = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
    if isinstance(error, OSError) and error.errno in codes and error.filename is not None:
        return UserError(
            str(error.strerror), where=error.filename, hint="choose another folder with --work, --run or --out"
        )
    return None
