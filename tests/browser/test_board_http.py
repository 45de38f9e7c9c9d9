"""What `rpt board` answers to a client that is no browser, and that the Run tab of `rpt browse` answers the same."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from commands.inspect.board import beside_training, opened
from pipeline.audit.board.app import create_board
from pipeline.audit.board.run import Run
from pipeline.audit.browse.listening import listening, server
from pipeline.config.errors import UserError
from tests.browser.board_run import (
    HOSTILE_NAME,
    HOSTILE_RESPONSES,
    accuracy,
    append,
    metrics_row,
    rollout_row,
    write_evaluation,
    write_rollouts,
    write_run,
)
from tests.browser.conftest import Live
from tests.browser.test_http import Answer, elements

SITE = "0" * 32 + "-7"
ROLLOUTS = ["/run/rollouts", "/run/rollouts?text=script&order=best&step=10", f"/run/site?site={SITE}"]


class Board(NamedTuple):
    runs: list[Run]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving_board(runs: Sequence[Run]) -> Iterator[Board]:
    """The server of `rpt board`, in a thread of the tests' process."""
    with listening(0) as taken:
        serves = server(create_board(runs))
        thread = threading.Thread(target=lambda: serves.run(sockets=[taken]), daemon=True)
        thread.start()
        for run in runs:
            while not run.rollouts.refresh(60):
                pass
        yield Board(list(runs), taken.getsockname()[1])
        serves.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A run of 30 steps with a hostile name, and a short one."""
    rows = [{"step": 0, **accuracy("hard", 0.1)}, *(metrics_row(step) for step in range(1, 31))]
    one = write_run(tmp_path / HOSTILE_NAME, rows)
    write_evaluation(one, hard=0.125)
    write_rollouts(one, 10, [rollout_row(10, SITE, n, response=text) for n, text in enumerate(HOSTILE_RESPONSES)])
    write_rollouts(one, 20, [rollout_row(20, SITE, n) for n in range(40)])
    two = write_run(tmp_path / "two", [metrics_row(1), metrics_row(2)])
    with serving_board(opened([one, two])) as served:
        yield served


def ask(port: int, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return content


def test_every_answer_has_the_headers_and_no_page_has_anything_inline(board: Board) -> None:
    paths = {
        "/run": 200,
        "/run?run=two": 200,
        "/run/data": 200,
        "/run?run=nothing": 404,
        "/nowhere": 404,
        "/assets/run.js": 200,
    }
    for path, status in {**paths, **dict.fromkeys(ROLLOUTS, 200), "/run/site?site=nothing": 404}.items():
        answer = ask(board.port, path)
        assert answer.status == status, path
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
        if "html" in answer.headers["Content-Type"]:
            for tag, attributes in elements(answer.text):
                assert tag != "style" and (tag != "script" or attributes["src"].startswith("/assets/")), path
                assert not [name for name in attributes if name == "style" or name.startswith("on")], (path, tag)
                for name in {"src", "href", "action", "data-source"} & attributes.keys():
                    assert re.match(r"[/#](?!/)", attributes[name]), (path, tag, attributes)


def test_other_sites_and_other_hosts_are_refused(board: Board) -> None:
    for path in ("/run", "/run/data", "/assets/run.js", *ROLLOUTS):
        assert ask(board.port, path, Sec_Fetch_Site="cross-site").status == 403
        assert ask(board.port, path, Host="evil.example").status == 421
        assert ask(board.port, path, Sec_Fetch_Site="same-origin").status == 200


def test_the_data_is_sent_once_and_again_when_it_changed(board: Board) -> None:
    name = quote(board.runs[0].name)
    first = json.loads(ask(board.port, f"/run/data?run={name}").body)
    assert [chart["key"] for chart in first["charts"]][:3] == ["reward", "accuracy", "outcomes"]
    again = f"/run/data?run={name}&since={quote(first['version'])}"
    assert "charts" not in json.loads(ask(board.port, again).body)
    append(board.runs[0].folder, [metrics_row(31)])
    changed = json.loads(ask(board.port, again).body)
    assert changed["charts"][0]["series"][0]["x"][-1] == 31
    both = json.loads(ask(board.port, "/run/data").body)
    assert [run["name"] for run in both["runs"]] == [HOSTILE_NAME, "two"]


def test_a_hostile_name_is_text(board: Board) -> None:
    page = ask(board.port, "/run").text
    assert "<script>window" not in page and "&lt;script&gt;window.pwned=1" in page
    assert "step <b>30</b> of 40" in ask(board.port, f"/run?run={quote(HOSTILE_NAME)}").text
    assert "directly 12.5 %" in ask(board.port, f"/run?run={quote(HOSTILE_NAME)}").text


def test_hostile_responses_are_text_and_turn_nothing_around(board: Board) -> None:
    page = ask(board.port, "/run/rollouts?step=10").text
    assert "<script>window" not in page and "&lt;script&gt;window.pwned=2" in page
    assert "\u202e" not in page and "U+202E" in page and "{{ 7*7 }}" in page
    assert "A" * 19_000 in page and "A" * 20_000 not in page and "more characters" in page
    for wrong in (
        "step=x",
        "least=nan",
        "page=-3",
        "order=none",
        "outcome=%3Cscript%3E",
        "text=" + "(" * 300,
        "band=%00",
    ):
        assert ask(board.port, f"/run/rollouts?{wrong}").status == 200, wrong


def test_rollouts_are_listed_by_page_and_a_site_at_two_steps(board: Board) -> None:
    pages = [ask(board.port, f"/run/rollouts?step=20&order=longest&page={n}").text for n in (1, 2, 3)]
    shown = [re.findall(r"step 20 at \S+, sample (\d+)", page) for page in pages]
    assert shown[0] == [str(n) for n in range(39, 19, -1)] and shown[1] == shown[2] == [
        str(n) for n in range(19, -1, -1)
    ]
    both = ask(board.port, f"/run/site?site={SITE}").text
    assert "Step 10: 2 of 3 match" in both and "Step 20: 16 of 32 match" in both
    assert f"context of {SITE}" in both and "/documents/" not in both


def test_looking_writes_nothing(board: Board, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in ("/run", "/run/data", "/run?run=two", *ROLLOUTS):
        ask(board.port, path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_page_beside_training_begins_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "new"
    with beside_training(folder):
        found = re.search(r"http://127\.0\.0\.1:(\d+)", capsys.readouterr().err)
        assert found
        assert "Nothing has been measured yet" in ask(int(found[1]), "/run").text
        append(folder, [metrics_row(1)])
        assert json.loads(ask(int(found[1]), "/run/data").body)["runs"][0]["step"] == 1
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(found[1])), timeout=5):
        pass


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no metrics"):
        opened([tmp_path])


def test_browse_finds_documents_and_positions_with_rollouts(live: Live) -> None:
    doc_id, _, position = live.built.site_with_rollouts.rpartition("-")
    page = ask(live.port, "/documents?rollouts=stored").text
    assert f"/documents/{doc_id}" in page and page.count('class="title"') == 1
    shown = json.loads(ask(live.port, f"/documents/{doc_id}/heat-map").body)
    assert shown["rollouts"] == [int(position)]
    assert (
        f'href="/documents/{doc_id}?position={position}"' in ask(live.port, f"/run/site?site={doc_id}-{position}").text
    )


def test_browse_has_the_tab_when_there_is_a_run(live: Live) -> None:
    assert 'href="/run"' in ask(live.port, "/documents").text
    page = ask(live.port, "/run").text
    assert 'href="/documents"' in page and "Nothing has been measured yet" in page
    assert json.loads(ask(live.port, "/run/data").body)["charts"] == []
