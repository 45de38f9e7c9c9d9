"""The Hub: listings and files of repositories, and its errors as sentences that say what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError, first_line
from pipeline.core.progress import console, log

OFFLINE_MODELS = (
    "to work offline, give local folders for proxy.model, proxy.tokenizer and materialize.policy_tokenizer of the "
    "manifest and for policy.model of the recipe, or download once and set HF_HUB_OFFLINE=1"
)
OFFLINE_DATA = "to work offline, give a copy with --source, or download once and set HF_HUB_OFFLINE=1"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def list_repository(repo: str, kind: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit that a revision of a repository means, and the names of all its files.

    Without network, both come from the cache. A cache that other tools filled may not know the names of all files: then
    the names are those of the files that it holds.

    Args:
        repo: `owner/name`.
        kind: `dataset` or `model`.
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        UserError: the repository cannot be listed; the message has the Hub's reason.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = snapshot(repo, kind, revision, ["README.md"])
    try:
        names = [file.path for file in get_cached_repo_tree(repo, repo_type=kind, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return folder.name, sorted(names)


def snapshot(repo: str, kind: str, revision: str | None, patterns: Sequence[str] | None = None) -> Path:
    """Return the cache's folder of a repository at a commit, whose name is the folder's, with the files asked for.

    Args:
        repo: `owner/name`.
        kind: `dataset` or `model`.
        revision: a branch, a tag or a commit; None is the main branch.
        patterns: which files to download; None is all.

    Raises:
        UserError: they cannot be downloaded and are not in the cache; the message has the Hub's reason.
    """
    import huggingface_hub
    from tqdm import tqdm

    bars: Any = tqdm if console.is_terminal else None
    wanted = None if patterns is None else list(patterns)
    with hub_errors(repo, kind, revision):
        return Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=wanted, tqdm_class=bars
            )
        )


def file_of(repo: str, kind: str, commit: str, name: str) -> Path:
    """Return the cached copy of a repository's file; it is downloaded first if it is not there.

    Raises:
        UserError: it cannot be downloaded; the message has the Hub's reason.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{repo}/{name}", kind, commit):
        return Path(hf_hub_download(repo, name, repo_type=kind, revision=commit))


@contextmanager
def hub_errors(where: str, kind: str, revision: str | None = None) -> Iterator[None]:
    """Convert what the client of the Hub raises into a `UserError`, and its lines about retries into a single one.

    Args:
        where: the repository, for messages.
        kind: `dataset` or `model`.
        revision: the revision asked for.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError  # HTTPError: the HTTP library's, not an OSError

    with _one_line_for_retries():
        try:
            yield
        except UserError:
            raise
        except HFValidationError as error:
            raise UserError("no such folder", where=where, hint="give a folder or a hub id `owner/name`") from error
        except (HTTPError, OSError, ValueError) as error:
            message, hint = explain(error, where, kind, revision)
            located = f"{where}@{revision}" if revision else where
            raise UserError(message, where=located, hint=hint) from error


def explain(error: BaseException, where: str, kind: str, revision: str | None) -> tuple[str, str]:
    """Return what an error of the Hub's client means and what to do, with the reason that the server gave."""
    from huggingface_hub import constants, errors, get_token

    chain = _chain(error)
    found = next((part for part in chain if isinstance(part, errors.HfHubHTTPError)), None)
    status = found.response.status_code if found is not None and found.response is not None else None
    said = _said(found)
    offline = OFFLINE_DATA if kind == "dataset" else OFFLINE_MODELS
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{'/'.join(where.split('/')[:2])}"
    log_in = "the token that is set may not read it" if get_token() else LOG_IN
    if isinstance(found, errors.GatedRepoError):
        return "the repository is gated", f"accept its terms at {page}, then {log_in}{said}"
    if isinstance(found, errors.RevisionNotFoundError):
        return f"the repository has no revision `{revision}`", f"the branches, tags and commits are listed at {page}"
    if isinstance(found, errors.DisabledRepoError):
        return "the Hub has disabled the repository", f"see {page}"
    if isinstance(found, errors.RepositoryNotFoundError) or (status == 401 and not get_token()):
        missing = "not a local folder, and not on the Hub" if kind == "model" else "no such data set on the Hub"
        return f"{missing}, or private there", f"check the name; if it is private, {log_in}{said}"
    if isinstance(found, errors.RemoteEntryNotFoundError):
        return "the repository has no such file", f"its files are listed at {page}/tree/{revision or 'main'}"
    if status == 401:
        return "the Hub refuses the token", f"log in again with `hf auth login`, or set another HF_TOKEN{said}"
    if status == 403:
        return "the Hub refuses access", f"the token lacks the permission{said}"
    if status == 429:
        return "the Hub limits the number of requests", f"{_wait(found)}; a token raises the limit: {LOG_IN}"
    if status is not None:
        return f"the Hub answers with the error {status}", f"run the same command again later{said}"
    if any(isinstance(part, errors.OfflineModeIsEnabled) for part in chain) or constants.HF_HUB_OFFLINE:
        return "not in the cache, and HF_HUB_OFFLINE is set", "unset it to download, or give a local copy"
    if (
        isinstance(error, errors.EntryNotFoundError)
        or not isinstance(error, OSError | ValueError)
        or _is_network(chain)
    ):
        reason = first_line(chain[-1])[:300]
        return "the Hub cannot be reached, or the connection broke", (
            f"{reason}; run the same command again when there is a network, a download resumes; {offline}"
        )
    return "the Hub's files cannot be fetched", first_line(error)[:300]


def _is_network(chain: Sequence[BaseException]) -> bool:
    return any(type(part).__module__.partition(".")[0] in ("httpx2", "httpx", "httpcore2") for part in chain)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that it was raised from, the last of which is the original one."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _said(error: Any) -> str:
    """Return the server's own words about an error, in brackets; empty if it said nothing."""
    if error is None or error.response is None:
        return ""
    words = error.response.headers.get("X-Error-Message") or getattr(error, "server_message", None) or ""
    words = " ".join(str(words).split())[:200]
    return f" [the Hub says: {words}]" if words else ""


def _wait(error: Any) -> str:
    seconds = error.response.headers.get("Retry-After")
    return f"wait {seconds} seconds" if seconds else "wait a few minutes"


class _Retries(logging.Filter):
    """Takes the client's lines about retries out of its log; the first becomes a line of ours."""

    told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for every line, after telling of the first one."""
        if not self.told and record.levelno >= logging.WARNING:
            _Retries.told = True
            log("hub          no answer from the Hub, or it asks to wait: trying again for up to a minute")
        return False


@contextmanager
def _one_line_for_retries() -> Iterator[None]:
    """Keep the log of the client's HTTP layer, which has two lines per retry, out of the way."""
    names = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "huggingface_hub._snapshot_download")
    loggers, quiet = [logging.getLogger(name) for name in names], _Retries()
    for logger in loggers:
        logger.addFilter(quiet)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(quiet)
