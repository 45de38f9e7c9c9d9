"""Corpora as their owners have them: for each shape its files, its manifest and the documents that must come out.

The files are made here, because many of them are binary.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet

NAMES = ["Ann", "Ben", "Cleo", "Dov", "Eva", "Finn"]
TEXTS = [f"{name} counts {n} red apples, and then {n + 3} more." for n, name in enumerate(NAMES)]
ACCENTS = [f"{text} Déjà vu, café, naïve: ça va." for text in TEXTS]
WIDE = [f"{text} 数学 🙂 𝄞 é" for text in TEXTS]


@dataclass(frozen=True)
class Shape:
    """A corpus: what lies on disk, how the manifest names it, and what it must give."""

    files: dict[str, bytes]
    corpus: dict[str, Any] = field(default_factory=dict)
    """The manifest's `corpus` block beside `source`, which is the folder unless it is named here."""
    documents: list[str] = field(default_factory=lambda: list(TEXTS))
    """Texts of the documents, in source order."""
    quarantined: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    needs: str | None = None
    """Package of an extra."""

    def write(self, folder: Path) -> Path:
        """Write files and manifest, and return the manifest's path."""
        for name, data in self.files.items():
            (folder / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "corpus" / name).write_bytes(data)
        (folder / "corpus").mkdir(exist_ok=True)
        source = self.corpus.get("source", "")
        place = source.replace("::", f"::{folder}/corpus/") if "::" in source else f"{folder}/corpus/{source}"
        tree = {
            "name": "shape",
            "corpus": {"validation": {"documents": 0}, "max_quarantine_fraction": 0.9}
            | self.corpus
            | {"source": place},
            "proxy": {"train": {}},
            "materialize": {"policy_tokenizer": "unused"},
        }
        path = folder / "manifest.yaml"
        path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
        return path


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def rows(texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    return [{"text": text, "n": n} for n, text in enumerate(texts)]


def pretty(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()


def csv(delimiter: str, header: bool = True) -> bytes:
    table = [["id", "text"]] * header + [[str(n), f'"{text}"'] for n, text in enumerate(TEXTS)]
    return "".join(delimiter.join(row) + "\r\n" for row in table).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return out.getvalue()


def saved(write: Callable[[pa.Table, Any], None]) -> bytes:
    out = io.BytesIO()
    write(pa.table({"text": TEXTS, "n": range(len(TEXTS)), "l": [[n] for n in range(len(TEXTS))]}), out)
    return out.getvalue()


def arrow(table: pa.Table, out: Any) -> None:
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def sample(text: str) -> list[tuple[str, bytes]]:
    """Files of a sample of a WebDataset by extension."""
    return [("txt", text.encode()), ("jpg", b"\xff")]


def page(text: str) -> bytes:
    start = "<html><head><title>T</title><script>var a;</script></head><body>"
    second = "<p>It was a long day at the market &amp; all.</p>"
    return f"{start}<article><p>{text}</p>{second}</article></body></html>".encode()


def chat(question: Any, answer: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 4}'}}
SPLIT = [text.split(", ") for text in TEXTS]

SHAPES: dict[str, Shape] = {
    # ------------------------------------------------------------------------------------------------- JSON
    "wrapper_object": Shape({"x.json": json.dumps({"version": "1.1", "data": {"items": rows()}}).encode()}),
    "wrapper_named": Shape({"x.json": pretty({"train": rows(), "test": rows(ACCENTS)})}, {"records": "train"}),
    "pretty_json": Shape({"x.json": pretty(rows())}),
    "pretty_wrapper": Shape({"x.json": pretty({"about": {"tags": ["a", "b"]}, "rows": rows()})}),
    "one_object_per_file": Shape({f"{n}.json": pretty(row) for n, row in enumerate(rows())}),
    "objects_one_after_the_other": Shape({"x.json": b"\n".join(map(pretty, rows()))}),
    "array_of_strings": Shape({"x.json": pretty(TEXTS)}),
    "list_of_lines": Shape(
        {"x.jsonl": lines([{"lines": part} for part in SPLIT])},
        {"text": "{lines}"},
        ["\n".join(part) for part in SPLIT],
    ),
    "joined_paragraphs": Shape(
        {"x.jsonl": lines([{"paragraphs": part} for part in SPLIT])},
        {"text": '{paragraphs | join(", ")}'},
    ),
    "first_paragraph": Shape(
        {"x.jsonl": lines([{"paragraphs": part} for part in SPLIT])},
        {"text": "{paragraphs.0}"},
        [part[0] for part in SPLIT],
    ),
    "lists_inside_list_elements": Shape(
        {"x.json": pretty({"data": [{"title": str(n), "paragraphs": [{"context": t}]} for n, t in enumerate(TEXTS)]})},
        {"text": "{context}"},
    ),
    "mixed_types": Shape(
        {"x.jsonl": lines([{"text": TEXTS[0]}, {"text": 7}, {"text": True}, {"text": None}, {"text": {"a": 1}}, {}])},
        {},
        [TEXTS[0], "7", "true"],
        {"null_column": 1, "wrong_type": 1, "missing_column": 1},
    ),
    "four_byte_characters": Shape({"x.jsonl": lines(rows(WIDE))}, {}, WIDE),
    "byte_order_mark": Shape({"x.jsonl": b"\xef\xbb\xbf" + lines(rows())}),
    "broken_and_double_lines": Shape(
        {"x.jsonl": lines(rows()) + b'{"text": "cut\n' + b'{"text": "\xff"}\n' + lines(rows()[:2])},
        {},
        TEXTS,
        {"not_json": 1, "not_utf8": 1},
        duplicates=2,
    ),
    "an_empty_file": Shape({"a.jsonl": b"", "b.jsonl": lines(rows())}),
    "a_huge_line": Shape({"x.jsonl": lines([*rows(), {"text": "x" * 3_000_000}])}, {}, TEXTS, {"too_long": 1}),
    # ------------------------------------------------------------------------------------------------ chats
    "openai_chat": Shape(
        {"x.jsonl": lines([chat(text, "Yes.") for text in TEXTS])},
        {"text": "{messages | chat}"},
        [f"user: {text}\n\nassistant: Yes." for text in TEXTS],
    ),
    "sharegpt": Shape(
        {
            "x.json": pretty(
                [{"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": "So."}]} for t in TEXTS]
            )
        },
        {"text": "{conversations}"},
        [f"user: {text}\n\nassistant: So." for text in TEXTS],
    ),
    "content_parts": Shape(
        {
            "x.jsonl": lines(
                [
                    chat([{"type": "text", "text": t}, {"type": "image_url", "image_url": {"url": "u"}}], "A.")
                    for t in TEXTS
                ]
            )
        },
        {"text": "{messages}"},
        [f"user: {text}[image_url]\n\nassistant: A." for text in TEXTS],
    ),
    "null_content_and_tool_calls": Shape(
        {"x.jsonl": lines([chat(text, None, tool_calls=[CALL]) for text in TEXTS])},
        {"text": "{messages}"},
        [f'user: {text}\n\nassistant: add({{"a": 3, "b": 4}})' for text in TEXTS],
    ),
    # -------------------------------------------------------------------------------------------------- CSV
    "tsv_without_header": Shape({"x.tsv": csv("\t", header=False)}, {"text": "{1}", "csv": {"header": False}}),
    "tsv_with_bare_quotes": Shape(
        {"x.tsv": b"id\ttext\n" + b"".join(b'%d\t"Oh, %s\n' % (n, text.encode()) for n, text in enumerate(TEXTS))},
        {},
        [f'"Oh, {text}' for text in TEXTS],
    ),
    "semicolon_csv": Shape({"x.csv": csv(";")}),
    "pipes_and_backslashes": Shape(
        {"x.csv": b"id|text\n" + b"".join(b"%d|a \\| %s\n" % (n, text.encode()) for n, text in enumerate(TEXTS))},
        {"csv": {"quote": "none", "escape": "\\"}},
        [f"a | {text}" for text in TEXTS],
    ),
    "quoted_newlines": Shape(
        {"x.csv": b"id,text\n" + b"".join(b'%d,"%s\n""so"" it is"\n' % (n, t.encode()) for n, t in enumerate(TEXTS))},
        {},
        [f'{text}\n"so" it is' for text in TEXTS],
    ),
    # -------------------------------------------------------------------------------------------- encodings
    "utf16": Shape(
        {"x.csv": ("id,text\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(WIDE))).encode("utf-16")},
        {"encoding": "utf-16"},
        WIDE,
    ),
    "utf16_without_mark": Shape(
        {"x.jsonl": lines(rows(WIDE)).decode().encode("utf-16-le")}, {"encoding": "utf-16-le"}, WIDE
    ),
    "latin1": Shape(
        {"x.txt": "\n".join(ACCENTS).encode("latin-1")}, {"encoding": "latin-1", "document_break": "line"}, ACCENTS
    ),
    "cp1252_with_a_byte_it_lacks": Shape(
        {"x.jsonl": lines(rows(ACCENTS)).decode().encode("cp1252") + b'{"text": "\x81"}\n'},
        {"encoding": "cp1252"},
        ACCENTS,
        {"not_utf8": 1},
    ),
    "gb18030": Shape(
        {"x.json": pretty({"data": rows(WIDE)}).decode().encode("gb18030")}, {"encoding": "gb18030"}, WIDE
    ),
    # ------------------------------------------------------------------------- compressed, and in archives
    "gzip": Shape({"x.jsonl.gz": gzip.compress(lines(rows()))}),
    "bz2": Shape({"x.jsonl.bz2": bz2.compress(lines(rows()))}),
    "xz": Shape({"x.csv.xz": lzma.compress(csv(","))}),
    "zip": Shape({"a.zip": zipped({"b/x.jsonl": lines(rows()), "b/notes.md": b"", "._x": b"no"})}, {"source": "a.zip"}),
    "zip_members_by_chain": Shape(
        {"a.zip": zipped({"x.jsonl": lines(rows()), "y.csv": csv(",")})}, {"source": "zip://*.jsonl::a.zip"}
    ),
    "tar": Shape({"a.tar": tarred({"b/x.jsonl": lines(rows())})}, {"source": "a.tar"}),
    "tar_gz": Shape(
        {"a.tgz": tarred({f"{n}.txt": t.encode() for n, t in enumerate(TEXTS)}, "w:gz")}, {"source": "a.tgz"}
    ),
    # --------------------------------------------------------------------------------------------- folders
    "html": Shape(
        {f"{n}.html": page(text) for n, text in enumerate(TEXTS)},
        {},
        [f"{text}\nIt was a long day at the market & all." for text in TEXTS],
        needs="trafilatura",
    ),
    "xml": Shape(
        {
            f"{n}.xml": f"<?xml version='1.0' encoding='iso-8859-1'?><d><!-- no --><p>{t}</p></d>".encode("latin-1")
            for n, t in enumerate(ACCENTS)
        },
        {},
        ACCENTS,
        needs="lxml",
    ),
    "xml_dump": Shape(
        {"x.xml": f"<f><about/>{''.join(f'<e><t>{t}</t></e>' for t in ACCENTS)}</f>".encode()},
        {"text": "{t}"},
        ACCENTS,
        needs="lxml",
    ),
    "code_folder": Shape(
        {
            "src/a.py": TEXTS[0].encode(),
            "src/__init__.py": TEXTS[1].encode(),
            "README.md": TEXTS[2].encode(),
            "Makefile": TEXTS[3].encode(),
            "logo.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            ".git/config": b"[core]",
            "tests/test_a.py": b"left out by a glob",
        },
        {"format": "text", "exclude": ["test_*.py"]},
        [TEXTS[3], TEXTS[2], TEXTS[1], TEXTS[0]],
    ),
    "markdown_folder": Shape(
        {"a/one.md": TEXTS[0].encode(), "two.md": TEXTS[1].encode(), "a/x.jsonl": b"{}"},
        {"include": ["*.md"]},
        [TEXTS[0], TEXTS[1]],
    ),
    "many_tiny_files": Shape(
        {f"{n:04d}.txt": b"This is the tiny text number %d." % n for n in range(5000)},
        {},
        [f"This is the tiny text number {n}." for n in range(5000)],
    ),
    # ----------------------------------------------------------------------------------------------- tables
    "orc": Shape({"x.orc": saved(pyarrow.orc.write_table)}),
    "feather": Shape({"x.feather": saved(pyarrow.feather.write_feather)}),
    "parquet": Shape({"x.parquet": saved(pyarrow.parquet.write_table)}),
    "arrow": Shape({"x.arrow": saved(arrow)}),
    # --------------------------------------------------------------------------------------------- data sets
    "save_to_disk": Shape(
        {"dataset_dict.json": b'{"splits": ["train", "test"]}'}
        | {f"{split}/data-00000-of-00001.arrow": saved(arrow) for split in ("train", "test")}
        | {f"{split}/{name}.json": b"{}" for split in ("train", "test") for name in ("state", "dataset_info")}
    ),
    "web_dataset": Shape(
        {
            "a.tar": tarred(
                {
                    f"{n}.{end}": data
                    for n, t in enumerate(TEXTS)
                    for end, data in (("txt", t.encode()), ("jpg", b"\xff"))
                }
            )
        },
        {"text": "{txt}"},
        needs="datasets",
    ),
    "train_and_test_folders": Shape({"train/x.jsonl": lines(rows()), "test/x.jsonl": lines(rows(ACCENTS))}),
    "two_configurations": Shape(
        {
            "README.md": b"---\nconfigs:\n"
            b"- {config_name: main, data_dir: main}\n"
            b"- {config_name: extra, data_dir: extra}\n---\n",
            "main/x.jsonl": lines(rows()),
            "extra/x.jsonl": lines(rows(ACCENTS)),
        },
        {"configuration": "main"},
    ),
}
