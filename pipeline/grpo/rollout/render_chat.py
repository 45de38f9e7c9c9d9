"""Script that renders one chat template with `transformers`, within limits; `chat_template.py` starts it.

Chat templates are untrusted programs that come with a policy. The script imports nothing of this project, because it is
run as a file in isolated mode.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

SECONDS, MEMORY, CHARACTERS = 5, 1 << 30, 1 << 20
"""Limits of processor time, of additional memory in bytes, and of the rendered text's length."""


def main() -> None:
    """Read a request from standard input, write `{"text": …}` or `{"error": …}` to standard output."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(request["now"])

    setattr(chat_template_utils, "datetime", Clock)  # noqa: B010  # used by the templates' `strftime_now`
    limit()
    try:
        rendered: Any = chat_template_utils.render_jinja_template(
            [request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=request["add_generation_prompt"],
            **request["special_tokens"],
        )
        text = rendered[0][0]
        if len(text) > CHARACTERS:
            raise ValueError(f"it renders {len(text):,} characters, more than {CHARACTERS:,}")
        answer = {"text": text}
    except MemoryError:
        answer = {"error": f"it takes more than {MEMORY >> 20} MiB"}
    except Exception as error:  # a template can raise anything
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    json.dump(answer, sys.stdout)


def limit() -> None:
    """Limit the processor time and memory that this process can use from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = round(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    pages = Path("/proc/self/statm")
    if pages.exists():
        held = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


if __name__ == "__main__":
    main()
