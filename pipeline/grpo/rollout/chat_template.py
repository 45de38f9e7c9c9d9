"""A policy's chat template: finding it and rendering it. Imports no torch.

A chat template is an untrusted program that came with the policy. It is rendered in a process of its own, with limits
on time, memory and length; a failure is reported as a user error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError

Message = Mapping[str, str]
TIMEOUT = 600.0
"""Seconds after which a rendering is aborted; normally its limit of processor time ends it long before."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the special tokens that it can refer to."""

    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token`, …"""
    where: str = ""
    """The policy's name or folder, for error messages."""

    @classmethod
    def of(cls, folder: Path) -> ChatTemplate | None:
        """Read the template in a policy's folder; return None if it has none.

        Raises:
            UserError: it has several templates and none is the default.
        """
        settings = read_json(folder / "tokenizer_config.json")
        special = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in (read_json(folder / "special_tokens_map.json") | settings).items()
            if name.endswith("_token") and (isinstance(token, str) or (isinstance(token, dict) and "content" in token))
        }
        file, text = folder / "chat_template.jinja", settings.get("chat_template")
        if file.is_file():
            text = file.read_text(encoding="utf-8")
        if isinstance(text, list):
            text = {entry["name"]: entry["template"] for entry in text}.get("default")
            if text is None:
                raise UserError(
                    "several chat templates and no default", where=folder, hint="name one of them `default`"
                )
        return cls(text, special, str(folder)) if text else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, now: datetime | None = None) -> str:
        """Render a conversation as text.

        Args:
            messages: `role` and `content` of each message.
            add_generation_prompt: True to open the policy's next turn.
            now: the time that a template gets if it asks for the date; by default the current time.

        Raises:
            UserError: the template fails, or takes too much time, memory or text.
        """
        request = {
            "template": self.text,
            "messages": list(messages),
            "special_tokens": dict(self.special_tokens),
            "add_generation_prompt": add_generation_prompt,
            "now": (now or datetime.now()).isoformat() if "strftime_now" in self.text else "2000-01-01",
        }
        answer = _run_renderer(canonical_json(request))
        if "text" not in answer:
            raise UserError(
                f"the policy's chat template cannot be rendered: {answer['error']}",
                where=self.where,
                hint="repair `chat_template` in the policy's folder, or remove it",
            )
        return str(answer["text"])


@lru_cache(maxsize=64)
def _run_renderer(request: str) -> dict[str, Any]:
    """Run `render_chat.py` on a request and return its answer."""
    script = str(Path(__file__).with_name("render_chat.py"))
    stdin = json.dumps(json.loads(request) | {"path": sys.path})
    try:
        done = subprocess.run(
            [sys.executable, "-I", script], input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "it does not end"}
    if done.returncode < 0:
        return {"error": "it takes too much time or memory"}
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2][:300]}
    return dict(json.loads(done.stdout.rpartition("\n")[2]))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the policy; return an empty one if there is no such file.

    Raises:
        UserError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("not valid JSON", where=path, hint=str(error)) from error
    if not isinstance(tree, dict):
        raise UserError("not a JSON object", where=path, hint="download the policy again")
    return tree
