"""Corpora that hurt, as somebody writes them who has read no page: each message leads to the next step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from tests.corpora.shapes import ACCENTS, TEXTS, pretty, tarred, zipped
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
NOTEBOOKS = {
    f"work/{n}.ipynb": pretty({"cells": [{"cell_type": "markdown", "source": ["# About\n", text]}], "nbformat": 4})
    for n, text in enumerate(TEXTS)
} | {"work/requirements.txt": b"numpy\n"}
LINES = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS).encode()
PATENTS = "".join(
    f'<?xml version="1.0"?>\n<!DOCTYPE grant SYSTEM "g.dtd" []>\n<grant no="{n}"><abstract>{text}</abstract></grant>\n'
    for n, text in enumerate([*TEXTS, "Research & development: a patent that is broken."])
)
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
    "notebooks": (
        "work.zip",
        zipped(NOTEBOOKS),
        [
            (
                {},
                "6 .ipynb, 1 .txt. To read some of them: corpus.include: ['*.ipynb'] with corpus.format: jsonl",
            ),
            ({"include": ["*.ipynb"], "format": "jsonl"}, "one JSON object over many lines"),
            ({"format": "json"}, "records of `cells`: cell_type, source; name columns of one of these"),
            ({"text": "{source}"}, ""),
        ],
        6,
    ),
    "parts of a job": (
        "job.tar",
        tarred({"out/_SUCCESS": b"", **{f"out/part-0000{n}": gzip.compress(LINES) for n in range(2)}}),
        [
            ({}, "corpus.include: ['part-*'] with corpus.format: jsonl"),
            ({"include": ["part-*"], "format": "jsonl"}, "the file is gzip, by its first bytes"),
        ],
        0,
    ),
    "lines in a text file": (
        "dump.txt",
        LINES,
        [
            ({}, "the lines of this text file are JSON objects"),
            ({"format": "jsonl"}, "such as corpus.text: '{body}'"),
            ({"text": "{body}"}, ""),
        ],
        6,
    ),
    "patents": (
        "ipg250107.xml",
        PATENTS.encode(),
        [
            ({}, "several XML documents, one after the other. To make each a record: corpus.records: grant"),
            ({"records": "grant"}, "known: abstract, no"),
            ({"text": "{abstract}"}, ""),
        ],
        6,
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_messages_lead_to_the_documents(tmp_path: Path, name: str) -> None:
    if name in ("dump", "patents"):
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
