"""A live page on a free port of this machine, over a small hostile corpus; and a browser where there is one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands.inspect.browse import open_library
from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.listening import server
from pipeline.audit.browse.server import create_app
from pipeline.config.manifest import Manifest
from tests.browser.corpus import Built, build
from tests.stages.published import InProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page


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


class Walk:
    """A page, and the number of clicks in it. Typing and Enter are no clicks."""

    def __init__(self, page: Page) -> None:
        self.page, self.clicks = page, 0

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def tab(self, name: str) -> None:
        """Click a link of the navigation."""
        self.click(self.page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}")))


WIDE_AND_PHONE = pytest.mark.parametrize("walk", [1280, 390], ids=["wide", "phone"], indirect=True)
"""Walk a test at 1280 px, and on a phone in the dark."""


@pytest.fixture
def walk(request: pytest.FixtureRequest, browser: Browser, live: Live) -> Iterator[Walk]:
    """A walk that begins at the first page. No script of the corpus may run, nothing may be logged or overflow."""
    width = getattr(request, "param", 1280)
    context = browser.new_context(
        base_url=live.url, viewport={"width": width, "height": 900}, color_scheme="dark" if width < 800 else "light"
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto("/")
    yield Walk(page)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate("window.pwned") is None
    assert problems == []
    context.close()


@pytest.fixture(scope="session")
def axe(repository: Path) -> str:
    """The source of axe-core, or a skip that says how to get it."""
    path = Path(os.environ.get("AXE_PATH") or repository / "node_modules" / "axe-core" / "axe.min.js")
    if not path.is_file():
        pytest.skip("no axe-core (npm install --no-save axe-core, or AXE_PATH=file): accessibility tests are skipped")
    return path.read_text(encoding="utf-8")
