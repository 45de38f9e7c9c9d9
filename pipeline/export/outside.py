"""Protects exchange with the outside: removes secrets from configurations, and checks paths of pulled data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.config.errors import IntegrityError

_URL = re.compile(r"\b(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>[^\s\"'<>]*)", re.IGNORECASE)
_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)


def redact(tree: Any) -> Any:
    """Return the values of a configuration without secrets and local paths.

    An absolute path is cut to its last name. URLs lose user, password, query and fragment, each of which may be secret.

    Example:
        >>> redact({"source": "https://me:pw@host/a.jsonl?sig=x", "model": "/home/me/proxy", "seed": 0})
        {'source': 'https://host/a.jsonl', 'model': 'proxy', 'seed': 0}
    """
    if isinstance(tree, dict):
        return {key: redact(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact(value) for value in tree]
    if isinstance(tree, str):
        return Path(tree).name if Path(tree).is_absolute() else _URL.sub(_redacted_url, tree)
    return tree


def _redacted_url(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    if scheme.lower() in ("file", "local"):
        return Path(rest).name
    rest = rest[: _end_of_path(scheme, rest)]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _end_of_path(scheme: str, rest: str) -> int:
    """Return the index at which a URL's query or fragment begins.

    In object stores' URLs `?` is a wildcard of the path, unless a value follows.
    """
    ends = [rest.find(mark) for mark in "?#" if mark in rest]
    end = min(ends, default=len(rest))
    return end if scheme.lower().startswith("http") or "=" in rest[end:] else len(rest)


def find_secrets(tree: Any) -> set[str]:
    """Return possible secrets that `redact` removes from the URLs of a configuration, as written and unquoted.

    Example:
        >>> sorted(find_secrets({"source": "https://me:passw0rd@host/a.jsonl?sig=abcdef%2F1"}))
        ['abcdef%2F1', 'abcdef/1', 'passw0rd']
    """
    if isinstance(tree, dict | list):
        return set().union(*map(find_secrets, tree.values() if isinstance(tree, dict) else tree))
    found: set[str] = set()
    for match in _URL.finditer(tree) if isinstance(tree, str) else ():
        rest = match["rest"]
        end = _end_of_path(match["scheme"], rest)
        user = rest[:end].partition("/")[0].rpartition("@")[0]
        found |= {*re.split("[:]", user), *re.split("[?#&]", rest[end:])}
    values = {value.partition("=")[2] or value for value in found}
    return {value for raw in values for value in (raw, unquote(raw)) if len(value) >= _MIN_SECRET}


_MIN_SECRET = 6
"""Minimum characters of a possible secret: shorter values occur in files by chance."""


def check_path(path: str) -> str:
    """Return a path below a data set after checking that it has the form that `rpt push` writes.

    Raises:
        IntegrityError: it does not, so it may lead out of the data set.
    """
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise IntegrityError("a path leads out of the data set", where=repr(path), hint="do not trust this data set")
    return path


def has_links(folder: Path, path: str) -> bool:
    """Return whether any part of a path below a folder is a symbolic link; the last part may not exist yet."""
    return any((folder / part).is_symlink() for part in [Path(path), *Path(path).parents[:-1]])
