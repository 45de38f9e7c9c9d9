"""The live page, asked the worst that a person or another program can write into its address.

`RPT_FUZZ=10000 pytest tests/browser/test_fuzz.py -s` asks more, and prints how long the slowest answer took.
"""

from __future__ import annotations

import http.client
import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.browser.conftest import Live
from tests.browser.where_fuzz import grammar, mutated

QUESTIONS = int(os.environ.get("RPT_FUZZ", "400"))
WITHIN = 300.0
"""Seconds for an answer: a hang, not a slow machine. `-s` shows how long the slowest took."""

WARM_UP = "entropy > 1 AND nll > 1 AND entropy_partial > 0 AND rank > 0 AND reference_nll > 0 AND position > 0 AND \
byte_offset > 0 AND difficulty > 0 AND doc_id > '' AND field > '' AND tokens > 0"


@dataclass
class Served:
    """The server's process, and what it has opened."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def opened(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


@pytest.fixture
def served(live: Live, tmp_path: Path, repository: Path) -> Iterator[Served]:
    log = tmp_path / "opened.log"
    command = [sys.executable, "-m", "tests.browser.audited_server"]
    process = subprocess.Popen(
        [*command, live.manifest.model_dump_json(), str(live.built.work), str(log)],
        stderr=subprocess.PIPE, text=True, cwd=repository,
    )  # fmt: skip
    assert process.stderr
    line = next(line for line in process.stderr if "http://127.0.0.1:" in line)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield Served(process, int(line.split("http://127.0.0.1:")[1].split()[0]), log)
    process.kill()
    process.wait()


def paths(rng: random.Random, where: str, doc_id: str) -> str:
    """A page that takes a rule."""
    asked = quote(where.encode("utf-8", "surrogatepass"), safe="")
    return rng.choice(
        (f"/what-if?where={asked}", f"/what-if?where={asked}", f"/compare?b={asked}",
         f"/documents/{doc_id}/heat-map?rule={asked}", f"/documents?meta={asked}")
    )  # fmt: skip


def test_no_where_hangs_or_ends_the_server_or_makes_it_open_anything(
    live: Live, served: Served, tmp_path: Path
) -> None:
    os.mkfifo(pipe := tmp_path / "canary.csv")  # who reads it, in whatever language, waits, and is seen
    asked_for: list[str] = []

    class Canary(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            asked_for.append(str(self.client_address))

    canary = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=canary.serve_forever, daemon=True).start()
    targets = (str(pipe), f"http://127.0.0.1:{canary.server_address[1]}/canary.csv")
    rng, doc_id = random.Random(int(os.environ.get("RPT_FUZZ_SEED", "0"))), live.library.store.documents["doc_id"][0]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WITHIN)
    for split in ("train", "validation"):
        for rule in (WARM_UP, "entropi", "nll > 0.12345"):
            pages = (f"/what-if?split={split}&where=", f"/compare?split={split}&b=", "/documents?meta=")
            for page in (*pages, f"/documents/{doc_id}/heat-map?rule="):
                connection.request("GET", page + quote(rule))
                connection.getresponse().read()
    before, statuses, slowest, counted = len(served.opened()), Counter[int](), (0.0, ""), 0
    for question in range(QUESTIONS):
        where = (grammar, mutated)[question % 2](rng, targets)
        if len(path := paths(rng, where, doc_id)) > 60_000:
            path = path[:60_000].rpartition("%")[0]
        begin = time.monotonic()
        connection.request("GET", path)
        answer = connection.getresponse()
        counted += b'class="problem"' not in answer.read() and answer.status == 200
        slowest = max(slowest, (time.monotonic() - begin, path[:300]))
        statuses[answer.status] += 1
        assert answer.status in (200, 400, 404), (answer.status, path[:500])
    used = next(line for line in Path(f"/proc/{served.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    took = f"slowest {slowest[0]:.2f} s: {slowest[1]}"
    print(f"\n{QUESTIONS} questions: {dict(statuses)}, {counted} counted; {took}; {used}")
    assert served.process.poll() is None and counted > QUESTIONS // 20
    ours = f"open '{live.built.work}/browse"  # the index, and the bits of the selection that `/compare` shows unasked
    assert [line for line in served.opened()[before:] if not line.startswith(ours)] == [] and asked_for == []
    with pytest.raises(OSError, match="No such device"):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # nobody has it open for reading
    assert int(used.split()[1]) < 2 << 20, used  # KiB
    canary.shutdown()


def test_a_signal_ends_the_server_while_it_computes(served: Served) -> None:
    """Whatever is asked, and with a connection that is half open."""
    connections = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=WITHIN) for _ in range(4)]
    slow = " OR ".join(f"LOWER(UPPER(doc_id)) ~ '{n}.*x'" for n in range(8))
    for connection in connections[1:]:
        connection.request("GET", f"/what-if?where={quote(slow)}")
    connections[0].connect()
    connections[0].sock.sendall(b"GET /documents HTTP/1.1\r\nHost: local")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=WITHIN) == -signal.SIGTERM
