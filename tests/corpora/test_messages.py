"""Three corpora that hurt, as somebody writes them who has read no page: each message leads to the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from tests.corpora.shapes import ACCENTS, TEXTS, pretty, zipped
from tests.corpus.corpora import run


def conversation(n: int, text: str) -> dict[str, Any]:
    """A chat with a tool call, contents in parts and null ones, under an id that is a number or a string."""
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found"},
    ]
    return {"id": n if n % 2 else str(n), "meta": {"lang": "en"}, "thread": {"messages": messages}}


CHATS = pretty(
    {
        "version": 3,
        "users": [{"name": "ann"}],
        "workspaces": [
            {"id": n, "conversations": [conversation(m, t) for m, t in enumerate(part)]}
            for n, part in enumerate((TEXTS[:2], TEXTS[2:]))
        ],
    }
)
TABLES = {
    f"export/{year}/avis.csv": "".join(
        ["id;avis;note\r\n", *(f'{n};"{text}\n ""ok"" {year}";5\r\n' for n, text in enumerate(ACCENTS))]
    ).encode("latin-1")
    for year in (2019, 2020)
} | {"export/LISEZMOI.txt": "Bonjour à tous".encode("latin-1"), "__MACOSX/._avis.csv": b"\0\1"}
DUMP = "".join(f'<row Id="{n}" Body="&lt;p&gt;{text}&lt;/p&gt;" />\n' for n, text in enumerate(TEXTS * 4))
STEPS: dict[str, tuple[str, bytes, list[tuple[dict[str, Any], str]], int]] = {
    # file name, content, [(what is written, what the message then says)], documents in the end
    "chats": (
        "chats.json",
        CHATS,
        [
            ({}, "records of `workspaces[].conversations`: id, meta, thread"),
            ({"text": "{thread.messages}"}, ""),
        ],
        6,
    ),
    "tables": (
        "avis.zip",
        zipped(TABLES),
        [
            ({}, "name the encoding of the files: corpus.encoding: latin-1"),
            ({"encoding": "latin-1"}, "known: note, id, avis; the template is made of them, such as corpus.text: '{"),
            ({"text": "{avis}"}, "to leave this one out, corpus.exclude: ['LISEZMOI.txt']"),
            ({"exclude": ["LISEZMOI.txt"]}, ""),
        ],
        12,
    ),
    "dump": (
        "posts.xml",
        f"<posts>\n{DUMP}</posts>".encode(),
        [
            ({}, "If each `posts.row` (24 or more) is a record: corpus.records: posts.row"),
            ({"records": "posts.row"}, "such as corpus.text: '{"),
            ({"text": "{Body}"}, ""),
        ],
        6,
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_messages_lead_to_the_documents(tmp_path: Path, name: str) -> None:
    if name == "dump":
        pytest.importorskip("trafilatura", reason="the extra `html`")
    file, content, steps, documents = STEPS[name]
    (tmp_path / file).write_bytes(content)
    written: dict[str, Any] = {"max_quarantine_fraction": 0.2}
    for more, said in steps:
        written |= more
        if not said:
            assert len(run(tmp_path / "work", tmp_path / file, **written).documents) == documents
            continue
        with pytest.raises(UserError) as error:
            run(tmp_path / "work", tmp_path / file, **written)
        assert said in str(error.value)
