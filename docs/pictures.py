"""Take the pictures of pages that the documentation shows, in Chromium, from the demo and from `docs/evidence`.

    make data train audit && python docs/pictures.py            # CHROMIUM=path, if it is not on the PATH

Playwright is needed (`requirements-dev.lock`). Names as arguments take only these pictures.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from commands.inspect.board import opened  # noqa: E402
from commands.inspect.browse import open_library  # noqa: E402
from pipeline.audit.board.app import create_board  # noqa: E402
from pipeline.audit.browse.app_state import AppState  # noqa: E402
from pipeline.audit.browse.listening import listening, server  # noqa: E402
from pipeline.audit.browse.server import create_app  # noqa: E402
from pipeline.config.loading import load  # noqa: E402
from pipeline.config.manifest import Manifest  # noqa: E402
from pipeline.config.recipe import Recipe  # noqa: E402
from pipeline.core.executor import LocalExecutor  # noqa: E402

WIDTH = 1280
RUNS = [DOCS / "evidence" / "omnimath-smollm2-seed1" / name for name in ("rpt", "at-once-rpt")]
RULE = "entropy > 1.5 AND field = 'solution'"


@dataclass(frozen=True)
class Picture:
    """What a picture shows."""

    name: str
    url: str
    height: int
    before: Callable[[Page], Any] = lambda page: None
    """What is done on the page first."""


def pictures(state: AppState, browse: str, board: str) -> Iterator[Picture]:
    """Yield the pictures.

    Args:
        state: The opened records of the demo.
        browse: Address of its pages.
        board: Address of the pages of `RUNS`.
    """
    sampled = {doc_id: min(positions) for doc_id, positions in state.sampled().items()}
    doc_id, position = next((d, p) for d, p in sampled.items() if state.finder.kept_D[state.store.document_of[d]] > 2)
    report = max((ROOT / "work" / "demo" / "audit").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    yield Picture("audit-report", report.as_uri(), 1560)
    yield Picture("browse-document", f"{browse}/documents/{doc_id}?position={position}", 1150, _drawn)
    yield Picture(
        "browse-what-if", f"{browse}/what-if?where={RULE.replace(' ', '+').replace('>', '%3E')}", 960, _counted
    )
    yield Picture("browse-facets", f"{browse}/documents?order=uncertain", 760)
    yield Picture("browse-why-not", f"{browse}/documents/{doc_id}", 860, _first_dropped)
    yield Picture("run", f"{browse}/run", 960, _drawn)
    yield Picture("run-step", f"{browse}/run?step=20&order=best#rollouts", 560, _drawn)
    yield Picture("board-runs", f"{board}/run", 960, _drawn)


def _drawn(page: Page) -> None:
    page.locator(".hm-token, .plot .curve").first.wait_for(state="attached")


def _counted(page: Page) -> None:
    page.wait_for_function("!document.querySelector('[data-unfinished]')")


def _first_dropped(page: Page) -> None:
    """Select an uncertain position that the rule drops."""
    page.locator(".hm-token.hm-rule[data-heat='8']").first.click()
    page.locator("#site-title").wait_for()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve a web application on a free port, and yield its address."""
    with listening(0) as taken:
        serves = server(app)
        thread = threading.Thread(target=lambda: serves.run(sockets=[taken]), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        serves.should_exit = True
        thread.join()


def main(names: list[str]) -> None:
    """Take the pictures of these names, all if there are none."""
    os.chdir(ROOT)
    manifest, recipe = load(Manifest, Path("data_manifests/demo.yaml")), load(Recipe, Path("recipes/demo.yaml"))
    state = open_library(manifest, work=Path("work/demo"), executor=LocalExecutor(1), recipe=recipe)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        serving(create_app(state)) as browse,
        serving(create_board(opened(RUNS))) as board,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for picture in pictures(state, browse, board):
            if names and picture.name not in names:
                continue
            page = browser.new_page(viewport={"width": WIDTH, "height": picture.height}, color_scheme="light")
            page.set_default_timeout(120_000)  # the first prompt imports `transformers`
            page.goto(picture.url, wait_until="networkidle")
            picture.before(page)
            page.mouse.move(0, 0)
            page.screenshot(path=DOCS / f"{picture.name}.png", animations="disabled")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
