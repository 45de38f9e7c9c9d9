"""What a client that is no browser sees: headers, hosts, refusals, and that only flags are written."""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import re
import socket
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.audit.browse import listening
from pipeline.audit.browse.flags import FLAGS, Flags
from pipeline.config.errors import UserError
from stages.select import _read_flags, select
from tests.browser.conftest import Live
from tests.browser.corpus import HOSTILE
from tests.stages.published import InProcess


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(live: Live, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return content


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Every element of a page: its name and its attributes."""
    found: list[tuple[str, dict[str, str]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, {n: v or "" for n, v in attributes}))  # type: ignore[method-assign]
    parser.feed(page)
    return found


@pytest.fixture(scope="module")
def doc_id(live: Live) -> str:
    return live.built.site_with_rollouts.rpartition("-")[0]


def pages(doc_id: str) -> list[str]:
    one = f"/documents/{doc_id}"
    documents = ["/documents", "/documents?text=red&split=train&least=1", one, f"{one}?position=7", f"{one}/heat-map"]
    rules = [
        "/what-if",
        "/what-if?where=nll+%3E+1&split=validation",
        "/compare",
        "/compare/selections",
        f"/compare/{doc_id}?b=entropy+%3E+2",
    ]
    lists = ["/positions", "/positions?b=nll+%3E+1&outcome=gained&band=hard&low=x&token=%3Cb%3E&page=9"]
    return [*documents, *rules, *lists, "/tokens", "/flags", "/flags.csv", "/flags.parquet", "/assets/browse.js"]


def test_every_answer_has_the_headers_and_no_page_has_anything_inline(live: Live, doc_id: str) -> None:
    for path in [*pages(doc_id), "/nowhere", "/documents/nothing", "/what-if?split=neither"]:
        answer = ask(live, path)
        assert answer.status == (200 if path in pages(doc_id) else 400 if "split" in path else 404), path
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        if "html" in answer.headers["Content-Type"]:
            for tag, attributes in elements(answer.text):
                assert tag != "style" and (tag != "script" or attributes["src"].startswith("/assets/")), path
                assert not [name for name in attributes if name == "style" or name.startswith("on")], (path, tag)
                for name in {"src", "href", "action"} & attributes.keys():
                    assert re.match(r"[/#](?!/)", attributes[name]), (path, tag, attributes)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost.evil"]
)
def test_a_host_that_is_not_this_machine_is_not_answered(live: Live, host: str) -> None:
    answer = ask(live, "/documents", Host=host)
    assert answer.status in (400, 421)
    assert b"Documents" not in answer.body


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_what_another_site_asks_for_is_not_answered(live: Live, site: str) -> None:
    """A link, an image or a script of another site, or of another port of this machine."""
    for path in ("/documents", "/what-if?where=nll+%3E+1", "/flags.csv", "/assets/browse.js"):
        answer = ask(live, path, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")
        assert answer.status == 403 and b"came from another site" in answer.body, path
    assert ask(live, "/flags", "POST", "", Sec_Fetch_Site=site).status == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_what_our_pages_and_people_ask_for_is_answered(live: Live, site: str) -> None:
    assert ask(live, "/documents", Sec_Fetch_Site=site).status == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /documents HTTP/1.1\r\nHost: local",
        b"POST /flags HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab",
    ],
    ids=["nothing", "half a header", "half a form"],
)
def test_a_connection_that_never_ends_its_request_is_closed(
    live: Live, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that trickles: every byte is in time, the request is not."""
    monkeypatch.setattr(listening, "REQUEST_TIMEOUT", 0.3)
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(begun)
        stopped = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while begun and not stopped.wait(0.1):
                    connection.sendall(b"x")

        threading.Thread(target=trickle, daemon=True).start()
        received = b"".join(iter(lambda: _received(connection), b""))
        stopped.set()
    assert b" 200 " not in received
    monkeypatch.undo()
    assert ask(live, "/documents").status == 200


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine_are_answered(live: Live, host: str) -> None:
    assert ask(live, "/documents", Host=host).status == 200


@pytest.mark.parametrize(
    "path",
    ["/assets/../server.py", "/assets/..%2Fserver.py", "/assets/%2Fetc%2Fpasswd", "/documents/../../etc/passwd",
     "/documents/..%2F..%2Fetc%2Fpasswd", "/documents/%00", "/assets/", "/compare/nothing", "/documents/x/heat-map"],
)  # fmt: skip
def test_a_path_is_never_a_file(live: Live, path: str) -> None:
    answer = ask(live, path)
    assert answer.status == 404
    assert "list of documents" in answer.text


def test_a_position_that_is_not_there_says_which_are(live: Live, doc_id: str) -> None:
    answer = ask(live, f"/documents/{doc_id}?position=99999")
    assert answer.status == 404 and "positions 0 to" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_but_flags_can_be_written(live: Live, method: str) -> None:
    for path in ("/documents", "/what-if", "/compare", "/assets/browse.js", *([] if method == "POST" else ["/flags"])):
        assert ask(live, path, method).status == 405, path


def token(live: Live, doc_id: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', ask(live, f"/documents/{doc_id}?position=7").text)
    assert found
    return found[1]


def flag(live: Live, headers: dict[str, str] | None = None, **fields: object) -> Answer:
    return ask(live, "/flags", "POST", urlencode(fields), **(headers or {}))


def test_a_flag_needs_the_token_and_our_own_origin(live: Live, doc_id: str) -> None:
    fields = {"doc_id": doc_id, "position": 5, "note": "not ours"}
    before = len(live.library.flags.all())
    assert flag(live, **fields).status == 403
    assert flag(live, token="guess", **fields).status == 403
    right = token(live, doc_id)
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{live.port + 1}", "http://[", ""):
        assert flag(live, {"Origin": origin}, token=right, **fields).status == 403, origin
    assert len(live.library.flags.all()) == before
    assert flag(live, {"Origin": live.url}, token=right, **fields).status == 303
    assert flag(live, token=right, doc_id=doc_id, position=5, action="remove").status == 303
    assert len(live.library.flags.all()) == before


def test_a_flag_of_what_is_not_there_is_refused(live: Live, doc_id: str) -> None:
    right = token(live, doc_id)
    for wrong in ({"doc_id": "nothing", "position": 5}, {"doc_id": doc_id, "position": 10**6}, {"doc_id": doc_id}, {}):
        assert flag(live, token=right, **wrong).status == 404
    assert flag(live, token=right, doc_id=doc_id, position=5, note="x" * 40_000).status == 413


def test_flags_in_bulk_are_guarded_like_one(live: Live, doc_id: str) -> None:
    def ask_for(**fields: object) -> int:
        return ask(live, "/flags/all", "POST", urlencode(fields)).status

    right, before = token(live, doc_id), len(live.library.flags.all())
    assert ask_for(of="document", query=f"doc_id={doc_id}") == 403
    for wrong in ({"of": "nothing"}, {"of": "document", "query": "doc_id=x"}, {}):
        assert ask_for(token=right, **wrong) == 404
    assert ask_for(token=right, of="positions", query="b=entropi+>+1") == 400
    assert ask(live, "/flags/all").status == 405
    assert len(live.library.flags.all()) == before


def test_an_id_or_a_row_in_the_search_box_is_a_place(live: Live, doc_id: str) -> None:
    documents = live.library.store.documents
    name, row = documents.filter(pl.col("doc_id") == doc_id).select("source_file", "source_row").row(0)
    places = {doc_id: "", f" {doc_id}-7 ": "?position=7", f"{name}:{row}": ""}
    for text, position in places.items():
        answer = ask(live, f"/documents?{urlencode({'text': text})}")
        assert (answer.status, answer.headers["Location"]) == (303, f"/documents/{doc_id}{position}")
    hidden = urlencode({"text": "../../../etc/train-0.ab.parquet:0"})
    assert ask(live, f"/documents?{hidden}").status == 400
    for text in (f"{doc_id}-99999999", f"{name}:99999", "etc/passwd:1", "Solution: 1", "a:b", f"x{name}:{row}"):
        assert ask(live, f"/documents?{urlencode({'text': text})}").status == 200, text


def test_only_a_log_of_flags_is_taken_for_one(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "flags.jsonl"
    flags = Flags(path)
    flags.set_all([("0" * 32, n) for n in range(2500)], "all")
    flags.set_all([("0" * 32, n) for n in range(2499)], None)
    assert _read_flags(path)["site_id"].to_list() == ["0" * 32 + "-2499"]
    path.write_text('{"text": "a corpus"}\n')
    rule = live.built.manifest.select.model_copy(update={"exclude": str(path)})
    manifest = live.built.manifest.model_copy(update={"select": rule})
    with pytest.raises(UserError, match="not a file of flags"):
        select(manifest, live.built.documents, live.built.scores, work=tmp_path / "work", executor=InProcess())


def test_flags_are_exported_as_they_were_made(live: Live, doc_id: str) -> None:
    right, note = token(live, doc_id), 'said "no", twice;\n</script>'
    assert flag(live, token=right, doc_id=doc_id, position=6, note="first thought").status == 303
    assert flag(live, token=right, doc_id=doc_id, position=6, note=note).status == 303
    table = pq.read_table(io.BytesIO(ask(live, "/flags.parquet").body))
    assert table.schema.equals(FLAGS)
    rows = [row for row in table.to_pylist() if row["position"] == 6]
    assert [(row["site_id"], row["doc_id"], row["note"]) for row in rows] == [(f"{doc_id}-6", doc_id, note)]
    listed = list(csv.DictReader(io.StringIO(ask(live, "/flags.csv").text)))
    assert [row["note"] for row in listed if row["position"] == "6"] == [note]
    assert list(listed[0]) == FLAGS.names
    flag(live, token=right, doc_id=doc_id, position=6, action="remove")


NOTES = [
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'tis",
    "''",
    "fine",
    "a = b",
    "",
    "é=1",
    " =1",
]


def test_no_cell_of_the_csv_is_a_formula_and_each_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Spreadsheets compute what begins with one of these characters, in a file that only lists notes, too."""
    flags = Flags(tmp_path / "flags.jsonl")
    for position, note in enumerate(NOTES):
        flags.set("0" * 32, position, note)
    (tmp_path / "flags.csv").write_bytes(flags.csv())
    with (tmp_path / "flags.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == FLAGS.names
    assert not [
        cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    ]
    assert [row["note"].removeprefix("'") for row in rows] == NOTES == flags.table()["note"].to_pylist()
    assert _read_flags(tmp_path / "flags.csv")["note"].fill_null("").to_list() == NOTES


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_manifest_leaves_out_what_was_flagged(live: Live, tmp_path: Path, suffix: str) -> None:
    """From the page to the shards' sites and back: `select.exclude` takes the export as it is."""
    right = token(live, live.built.site_with_rollouts.rpartition("-")[0])
    sites = pq.read_table([file.path for file in live.built.current.files("sites")]).to_pylist()
    flagged = [sites[0], sites[len(sites) // 2], sites[-1]]
    for site in flagged:
        note = 'a comma, "quotes",\na line and </script>'
        assert flag(live, token=right, doc_id=site["doc_id"], position=site["position"], note=note).status == 303
    exported = tmp_path / f"flags.{suffix}"
    exported.write_bytes(ask(live, f"/flags.{suffix}").body)
    for site in flagged:
        flag(live, token=right, doc_id=site["doc_id"], position=site["position"], action="remove")

    built = live.built
    rule = built.manifest.select.model_copy(update={"exclude": str(exported)})
    manifest = built.manifest.model_copy(update={"select": rule})
    record = select(manifest, built.documents, built.scores, work=tmp_path / "work", executor=InProcess())
    kept = pq.read_table([file.path for file in record.files("sites")])["site_id"].to_pylist()
    without = {site["site_id"] for site in flagged}
    assert kept == [site["site_id"] for site in sites if site["site_id"] not in without]
    assert record.counters["dropped.flagged"] == 3


def test_flags_survive_a_restart_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "flags.jsonl"
    flags = Flags(path)
    flags.set("a", 1, "one")
    with path.open("ab") as file:
        file.write(b'{"site_id": "a-2", "doc_')
    flags.set("a", 3, "three")
    flags.set("a", 1, None)
    assert list(Flags(path).all()) == list(flags.all()) == ["a-3"]
    assert Flags(tmp_path / "none").table().num_rows == 0


def test_hostile_text_is_escaped_in_pages_and_whole_in_json(live: Live) -> None:
    run, turn = live.built.hostile_ids[:2]
    page = ask(live, f"/documents/{run}?position=4").text
    assert "<script>window" not in page and "&lt;script&gt;window.pwned" in page
    assert "\u202e" not in ask(live, f"/documents/{turn}?position=9").text
    shown = json.loads(ask(live, f"/documents/{run}/heat-map").body)
    assert "".join(shown["tokens"]) == HOSTILE[0]


def test_a_rule_with_a_mistake_is_explained_where_it_was_written(live: Live) -> None:
    answer = ask(live, "/what-if?where=entropi+%3E+1")
    assert answer.status == 200 and "did you mean <code>entropy</code>" in answer.text
    assert "not a selection of these scores" in ask(live, "/compare?a=select:nothing").text


def test_the_pages_only_show_what_was_opened_and_write_nothing_else(live: Live, doc_id: str) -> None:
    def listed() -> dict[str, int]:
        return {str(p): p.stat().st_size for p in live.built.work.rglob("*") if p.is_file() and p.name != "flags.jsonl"}

    before = listed()
    for path in pages(doc_id):
        ask(live, path)
    assert listed() == before
