"""The sampling server's wire, over real HTTP; what samples behind it is the built-in sampler instead of vLLM."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn

from pipeline.config.errors import UserError
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.rollout.sampler_secret import VARIABLE, secret_file, shared_secret
from pipeline.grpo.rollout.vllm_sampler import RemoteEngine, Sampled, VllmSampler
from pipeline.grpo.rollout.vllm_server import application
from pipeline.grpo.types import SamplingRequest
from tests.grpo.models import tiny
from tests.grpo.rollout.test_sampler import TOKENIZER, some_prompts

EOS = range(0, 61, 6)
SECRET = "only-known-here"


class BuiltIn:
    """A token engine that samples by the built-in sampler."""

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> list[Sampled]:
        made = Sampler(tiny(), TOKENIZER, stop_ids).sample(request)
        return [(response.ids, response.logprobs, response.finished) for response in made]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    app = application(cast("Any", BuiltIn()), SECRET)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, SECRET)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_request_arrives_as_it_was_sent(url: str) -> None:
    """Numbers of numpy, seeds of 64 bits, and what ends a response included."""
    prompts = some_prompts(4)
    seeds = np.arange(8, dtype=np.uint64) + np.uint64(2**63)
    request = SamplingRequest([np.array(prompt) for prompt in prompts], 2, 0.7, 3, seeds)  # type: ignore[arg-type, list-item]
    here, there = Sampler(tiny(), TOKENIZER, EOS), VllmSampler(RemoteEngine(url), TOKENIZER, EOS)
    found, expected = there.sample(request), here.sample(request)
    assert [(r.ids, r.text, r.finished) for r in found] == [(r.ids, r.text, r.finished) for r in expected]
    assert {r.finished for r in expected} == {False, True}
    assert [r.logprobs for r in found] == [pytest.approx(r.logprobs) for r in expected]
    assert there.sample(SamplingRequest([], 2, 0.7, 12, [])) == []


def test_a_seed_is_needed_for_each_response() -> None:
    with pytest.raises(ValueError, match="expected one seed per response: 4, got 3"):
        SamplingRequest([[1], [2]], 2, 1.0, 8, [0, 1, 2])


def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot be reached"):
            VllmSampler(RemoteEngine(gone), TOKENIZER, EOS).sample(SamplingRequest([[1]], 1, 0.0, 1, [0]))


# ------------------------------------------------------------------------------------------------ who may ask it

ROOT = Path(__file__).parent.parent.parent.parent
ROUTES = [
    ("GET", "/health"),
    ("POST", "/sample"),
    ("PUT", "/parameter?name=w&dtype=float32&shape=1"),
    ("POST", "/commit"),
]
KNOWN = {"Authorization": f"Bearer {SECRET}"}


def status(url: str, method: str, path: str, headers: dict[str, str]) -> int:
    """Of a request with just these headers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in (headers | {"Content-Length": "2"}).items():
        connection.putheader(name, value)
    connection.endheaders(b"{}")
    return connection.getresponse().status


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 403),
        ({"Authorization": "Bearer "}, 403),
        ({"Authorization": f"Bearer {SECRET}x"}, 403),
        ({"Authorization": "Bearer \u00e9"}, 403),
        (KNOWN | {"Origin": "http://evil.example"}, 403),
        (KNOWN | {"Origin": "null"}, 403),
        (KNOWN | {"Sec-Fetch-Site": "cross-site"}, 403),
        (KNOWN | {"Host": "evil.example"}, 421),
        (KNOWN | {"Host": "127.0.0.1.evil.example:8077"}, 421),
        (KNOWN | {"Host": "["}, 421),
    ],
)
def test_nobody_without_the_secret_and_no_web_page_is_answered(
    url: str, method: str, path: str, headers: dict[str, str], expected: int
) -> None:
    assert status(url, method, path, headers) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8077", "192.0.2.7"])
def test_addresses_and_its_own_names_are_answered(url: str, host: str) -> None:
    assert status(url, "GET", "/health", KNOWN | {"Host": host}) == 200


def test_a_trainer_with_another_secret_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "another")
    with pytest.raises(UserError, match=f"403: wrong or missing token.*{VARIABLE}"):
        VllmSampler(RemoteEngine(url), TOKENIZER, EOS).sample(SamplingRequest([[1]], 1, 0.0, 1, [0]))


def test_the_secret_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = "from pipeline.grpo.rollout.sampler_secret import *; print(shared_secret())"
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    known = {process.communicate()[0].strip() for process in started}
    assert len(known) == 1 and len(known.pop()) >= 43
    (file,) = (tmp_path / "rpt").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert shared_secret() == shared_secret()
    secret_file().chmod(0o644)
    with pytest.raises(UserError, match="readable by other users"):
        shared_secret()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"set the same {VARIABLE} for trainer and server"):
        shared_secret()
