"""What the Hub refuses, in words that help; its client runs in its own process against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import LARGE, Hub, serve

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from pipeline.config.errors import UserError
from pipeline.core import hub

found = []
for call, *arguments in json.loads(sys.argv[1]):
    try:
        value = getattr(hub, call)(*arguments)
        found.append(value if isinstance(value, tuple) else str(value))
    except UserError as error:
        found.append({"message": error.message, "where": error.where, "hint": error.hint})
print(json.dumps(found))
"""
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, on which nothing listens


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


def ask(home: Path, endpoint: str, *calls: tuple[Any, ...], **environment: str) -> tuple[list[Any], str]:
    """What calls of `pipeline.core.hub` return in a new process, and what it prints to standard error."""
    given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    given |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "HF_HUB_ETAG_TIMEOUT": "5"}
    given |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)], capture_output=True, text=True, env=given, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_repository_is_listed_over_pages_and_its_files_come_from_another_host(hub: Hub, tmp_path: Path) -> None:
    files = {f"data/{n}.jsonl": b"x" * (LARGE * n + 1) for n in range(5)} | {"README.md": b"# about\n"}
    repository = hub.add("datasets/owner/name", files)
    commit = repository.tags["main"]
    calls = [("list_repository", "owner/name", "dataset", None)]
    calls += [("file_of", "owner/name", "dataset", commit, f"data/{n}.jsonl") for n in (0, 3)]
    (listed, small, large), said = ask(tmp_path, hub.endpoint, *calls)
    assert listed == [commit, sorted(files)]
    assert (Path(small).read_bytes(), Path(large).read_bytes()) == (files["data/0.jsonl"], files["data/3.jsonl"])
    assert sum("/tree/" in path for path in hub.requests) == 1 and said == ""
    assert hub.requests[f"GET /api/datasets/owner/name/tree/{commit}"] == 4, "six files and a folder, two on a page"

    before = hub.requests.total()
    again, said = ask(tmp_path, NOWHERE, *calls, HF_HUB_OFFLINE="1")
    assert again == [listed, small, large] and said == "" and hub.requests.total() == before


def test_a_tag_is_a_commit_and_a_revision_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    repository = hub.add("datasets/owner/name", {"README.md": b"one"})
    first = repository.tags["v1"] = repository.tags["main"]
    repository.commit({"README.md": b"two"})
    (tagged, missing), _ = ask(
        tmp_path,
        hub.endpoint,
        ("list_repository", "owner/name", "dataset", "v1"),
        ("list_repository", "owner/name", "dataset", "v2"),
    )
    assert tagged[0] == first != repository.tags["main"]
    assert missing["message"] == "the repository has no revision `v2`"


def test_gated_private_and_missing_repositories_say_so(hub: Hub, tmp_path: Path) -> None:
    hub.add("datasets/owner/gated", {"a.jsonl": b"{}", "README.md": b"-"}, access="gated")
    hub.add("datasets/owner/private", {"a.jsonl": b"{}", "README.md": b"-"}, access="private")
    calls = [("list_repository", f"owner/{name}", "dataset", None) for name in ("gated", "private", "missing")]
    (gated, private, missing), _ = ask(tmp_path, hub.endpoint, *calls)
    assert gated["message"] == "the repository is gated"
    assert f"{hub.endpoint}/datasets/owner/gated" in gated["hint"] and "hf auth login" in gated["hint"]
    assert "not in the authorized list" in gated["hint"], "the server's own words"
    for answer in (private, missing):
        assert answer["message"] == "no such data set on the Hub, or private there" and "HF_TOKEN" in answer["hint"]

    (gated, private, missing), _ = ask(tmp_path, hub.endpoint, *calls, HF_TOKEN=hub.token)
    assert private[1] == ["README.md", "a.jsonl"]
    assert "the token that is set may not read it" in gated["hint"]
    assert missing["message"] == "no such data set on the Hub, or private there"
    (refused,), _ = ask(tmp_path, hub.endpoint, calls[0], HF_TOKEN="hf_wrong")
    assert refused["message"] == "the Hub refuses the token"
    assert not hub.leaked


def test_a_missing_model_may_be_a_misspelt_folder(hub: Hub, tmp_path: Path) -> None:
    (missing, folder), _ = ask(
        tmp_path, hub.endpoint, ("snapshot", "demo/proxi", "model", None), ("snapshot", "a/b/c", "model", None)
    )
    assert missing["message"] == "not a local folder, and not on the Hub, or private there"
    assert folder["message"] == "no such folder"


def test_a_limited_rate_is_waited_for_in_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.add("datasets/owner/name", {"README.md": b"-", "a.jsonl": b"y" * 300})
    call = ("list_repository", "owner/name", "dataset", None)
    hub.limited = 1
    (listed,), said = ask(tmp_path, hub.endpoint, call)
    assert listed[1] == ["README.md", "a.jsonl"] and said.count("\n") <= 1
    hub.limited = 1000
    (refused,), said = ask(tmp_path / "other", hub.endpoint, call)
    assert refused["message"] == "the Hub limits the number of requests" and "wait 0 seconds" in refused["hint"]
    assert said.count("\n") <= 1


def test_without_network_the_message_says_how_to_work_offline(tmp_path: Path) -> None:
    calls = [("snapshot", "owner/name", "model", None, ["config.json"]), ("list_repository", "a/b", "dataset", None)]
    (model, data), said = ask(tmp_path, NOWHERE, *calls)
    for answer in (model, data):
        assert answer["message"] == "the Hub cannot be reached, or the connection broke"
        assert "HF_HUB_OFFLINE=1" in answer["hint"]
    for place in ("proxy.model", "proxy.tokenizer", "materialize.policy_tokenizer", "policy.model"):
        assert place in model["hint"]
    assert "--source" in data["hint"]
    assert said.count("\n") <= 1
    (model, _), _ = ask(tmp_path, NOWHERE, *calls, HF_HUB_OFFLINE="1")
    assert model["message"] == "not in the cache, and HF_HUB_OFFLINE is set"


def test_a_download_that_breaks_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    data = bytes(range(256)) * (44 << 10)  # 11 MiB; the client keeps what it got in pieces of 10 MiB
    commit = hub.add("datasets/owner/name", {"README.md": b"-", "a.jsonl": data, "b.jsonl": b"z" * 500}).tags["main"]
    hub.cut |= {"a.jsonl": (10 << 20) + 100, "b.jsonl": 100}
    calls = [("file_of", "owner/name", "dataset", commit, name) for name in ("a.jsonl", "b.jsonl")]
    (path, broken), said = ask(tmp_path, hub.endpoint, *calls)
    assert Path(path).read_bytes() == data, "two answers, the second from where the first one broke"
    assert broken["message"] == "the Hub cannot be reached, or the connection broke"
    assert "received 100 bytes, expected 500" in broken["hint"] and "run the same command again" in broken["hint"]
    assert said.count("\n") == 1, "one line for all retries"
    hub.cut.clear()
    (path, there), _ = ask(tmp_path, hub.endpoint, *calls)
    assert Path(there).read_bytes() == b"z" * 500
    assert not hub.leaked
