"""Board: serve the Run tab of `rpt browse` over training runs, to this machine only.

Input:   the folders of runs, live, finished, or copied from another machine.
Output:  pages on http://127.0.0.1:PORT, or one HTML file. Nothing is written in the folders of the runs.
Command: rpt board RUN… [--port 8000 | --html FILE]
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.audit.board.run import METRICS, Run, open_runs
from pipeline.config.errors import UserError
from pipeline.core.files import replace_text
from pipeline.core.progress import log

PORT = 8000


def opened(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders.

    Raises:
        UserError: one of them is no folder of a run.
    """
    for folder in folders:
        if folder.is_dir() and not (folder / METRICS).is_file():
            raise UserError("no run: it has no metrics", where=folder / METRICS, hint="give folders like runs/NAME")
    return open_runs(folders)


def serve(runs: Sequence[Run], port: int) -> None:
    """Serve the pages until Ctrl+C or SIGTERM, which end the process immediately.

    Raises:
        UserError: the port is in use.
    """
    from pipeline.audit.board.app import create_board
    from pipeline.audit.browse.listening import address, listening, server

    with listening(port) as taken:
        log(f"board        {address(taken)}  (Ctrl+C ends it)")
        server(create_board(runs)).run(sockets=[taken])


def export(runs: Sequence[Run], out: Path) -> None:
    """Write the page of some runs as one HTML file that opens offline."""
    from pipeline.audit.board.export import offline_page

    replace_text(out, offline_page(runs))
    log(f"board        {out}")


@contextmanager
def beside_training(folder: Path) -> Iterator[None]:
    """Serve the page of a run in a thread within the block, on `PORT` or, if that is taken, on any free port."""
    from pipeline.audit.board.app import create_board
    from pipeline.audit.browse.listening import address, listening, server

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            taken = stack.enter_context(listening(PORT))
        except UserError:
            taken = stack.enter_context(listening(0))
        serves = server(create_board(open_runs([folder])))
        thread = threading.Thread(target=lambda: serves.run(sockets=[taken]), daemon=True)
        thread.start()
        log(f"train        watch it on {address(taken)}  (ends with the training; `rpt board {folder}` opens it again)")
        try:
            yield
        finally:
            serves.should_exit = True
            thread.join(timeout=5)
