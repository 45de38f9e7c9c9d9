"""A live page on a free port of this machine, over a small hostile corpus; and a browser where there is one."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands.browse import open_library
from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.listening import server
from pipeline.audit.browse.server import create_app
from pipeline.config.manifest import Manifest
from tests.browser.corpus import Built, build
from tests.stages.published import InProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass(frozen=True)
class Live:
    """A server that is up."""

    built: Built
    library: AppState
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def manifest(self) -> Manifest:
        return self.built.manifest


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A corpus of a few shards."""
    with serving(build(tmp_path_factory.mktemp("browse"))) as served:
        yield served


@contextmanager
def serving(built: Built) -> Iterator[Live]:
    """The server, in a thread of the tests' process."""
    library = open_library(built.manifest, work=built.work, executor=InProcess(), runs=[built.run])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serves = server(create_app(library))
        thread = threading.Thread(target=lambda: serves.run(sockets=[listening]), daemon=True)
        thread.start()
        assert library.prompts  # imports `transformers`, as `rpt browse` does before anyone asks
        yield Live(built, library, listening.getsockname()[1])
        serves.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, or a skip that says how to get one."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium on the PATH (apt install chromium, or CHROMIUM=path): browser tests are skipped")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright  # only the tests with a browser pay for it

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="session")
def axe(repository: Path) -> str:
    """The source of axe-core, or a skip that says how to get it."""
    path = Path(os.environ.get("AXE_PATH") or repository / "node_modules" / "axe-core" / "axe.min.js")
    if not path.is_file():
        pytest.skip("no axe-core (npm install --no-save axe-core, or AXE_PATH=file): accessibility tests are skipped")
    return path.read_text(encoding="utf-8")
