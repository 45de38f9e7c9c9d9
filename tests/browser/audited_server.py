"""`rpt browse` in a process of its own that writes down every file and socket it opens.

Arguments: the manifest as JSON, its work folder, the log. A line of the log is `<audit event> <first argument>`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from commands.inspect.browse import open_library, serve
from pipeline.config.manifest import Manifest
from tests.stages.published import InProcess

WATCHED = (
    *("open", "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "urllib.Request"),
)


def main(manifest: str, work: str, log: str) -> None:
    library = open_library(Manifest.model_validate_json(manifest), work=Path(work), executor=InProcess())
    assert library.prompts  # imports `transformers`, which takes thousands of files
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in WATCHED:
            first = repr(arguments[0]) if arguments else ""
            os.write(descriptor, f"{event} {first}\n".encode(errors="replace"))

    sys.addaudithook(note)
    serve(library, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
