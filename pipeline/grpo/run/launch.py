"""Run a stage as a process: its specification, signals and exit. Starts without torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipeline.config.errors import as_user_error
from pipeline.core.progress import log, quiet_libraries
from pipeline.grpo.run.spec import SpecT, read_spec


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM within the block; the yielded function returns 1 once it came, so that the step can be finished."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # `rpt train` starts several ranks with it blocked
    try:
        yield lambda: int(bool(asked))
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_launcher() -> None:
    """Exit when torchrun is gone, even if it was killed: its ranks have sessions of their own and would go on."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if not _is_python(parent):
        os._exit(1)  # it was gone before we looked, and what adopts orphans has taken its place

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_python(process: int) -> bool:
    """Return True if a process runs Python, as every launcher does, or if that cannot be determined."""
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self").exists()


def run_rank(kind: type[SpecT], stage: Callable[[SpecT], object]) -> NoReturn:
    """Run a stage on the specification that this process's arguments name, to its exit code.

    Args:
        kind: the stage's specification.
        stage: is called with it.
    """

    def main() -> None:
        end_with_launcher()
        quiet_libraries()
        stage(read_spec(kind, sys.argv[1:]))

    run_to_exit(main)


def run_to_exit(main: Callable[[], None]) -> NoReturn:
    """Run a page as a process, to its exit code; a user error is printed as one line, without a traceback.

    Leaves without Python's teardown: with several ranks, threads of the process group that are still there then have
    been seen to abort a rank whose work was done.
    """
    code = 0
    try:
        main()
    except Exception as error:
        if not (user_error := as_user_error(error)):
            raise
        log(f"error: {user_error}")
        code = user_error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
