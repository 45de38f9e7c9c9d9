"""The files of a gate, which exported policies and shards carry: its numbers, and the code that applies them."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.task import gate as gate_module
from pipeline.task.gate import MAX_BYTES, gate_of

GATE_FILE = "gate.json"
APPLIES = "rpt_gate.py"
"""Name of `pipeline/task/gate.py` in an export."""


def gate_code() -> str:
    """Return the text of `rpt_gate.py`: this version's `pipeline/task/gate.py`, which needs nothing else."""
    return Path(str(gate_module.__file__)).read_text(encoding="utf-8")


def read_gate(place: Path) -> str:
    """Return the text of a gate, from its file or the folder of its policy or run, once it has been checked.

    Raises:
        UserError: there is none, or it is not a gate of this version.
    """
    files = [place, place / GATE_FILE, place / "policy" / GATE_FILE]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError("no gate", where=place, hint="`rpt gate RUN` makes one")
    try:
        with path.open(encoding="utf-8") as file:
            return gate_of(file.read(MAX_BYTES + 1)).text()
    except (OSError, ValueError) as error:
        raise UserError(f"not a gate: {error}", where=path, hint="make it again with `rpt gate RUN`") from error
