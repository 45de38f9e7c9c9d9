"""Bundles the reward into a single file, from the modules that `rpt train` itself uses."""

from __future__ import annotations

import ast
from pathlib import Path

from pipeline.export import reward_callback
from pipeline.task import extraction, reward, thinking
from pipeline.task.thinking import Thinking

MODULES = (thinking, extraction, reward, reward_callback)
"""Modules in the order of their dependencies. They import only the standard library and one another."""

HEADER = '''"""Next-token rewards of Reinforcement Pre-Training (arXiv 2506.08007), as `rpt train` computes them.

Written by `rpt export` from {names}.
Standard library only, Python 3.8 or later: copy this file anywhere.
`compute_score` is for verl, `next_token_reward` for TRL, `reward_func` for OpenRLHF; `judge` for everything else.
"""

from __future__ import annotations
'''
"""Beginning of the file. It must not define dataclasses, which look up their module in `sys.modules`: trainers load the
file without registering it there."""

_OWN_FORM, _OWN_PRICE = "THINKING = TAGS", "TOKEN_PRICE = 0.0"


def reward_file(form: Thinking, token_price: float = 0.0) -> str:
    """Return the text of `rpt_reward.py`, which reads responses of this form and pays by this price of a token."""
    names = ", ".join(module.__name__.replace(".", "/") + ".py" for module in MODULES)
    bodies = "\n\n".join(_body(Path(str(module.__file__))) for module in MODULES)
    for own, line in ((_OWN_FORM, f"THINKING = {form!r}"), (_OWN_PRICE, f"TOKEN_PRICE = {token_price!r}")):
        if bodies.count(own) != 1:
            raise ValueError(f"the modules must have the line `{own}` once")
        bodies = bodies.replace(own, line)
    return f"{HEADER.format(names=names).rstrip()}\n\n{bodies}\n"


def _body(path: Path) -> str:
    """Return a module's source without its docstring and without imports that the bundle resolves."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and node.lineno == 1
        resolved = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("__future__", "pipeline")
        if docstring or resolved:
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return "\n".join(lines).strip()
