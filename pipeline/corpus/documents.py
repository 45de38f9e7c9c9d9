r"""Documents: their schema, and how a record becomes one.

A document is the text a template makes of a record's columns, in NFC, with the byte span of every column in it. Its
`doc_id` is a hash of that text, so that equal texts are one document wherever they come from.

A lone surrogate has no UTF-8, and U+0000 ends strings in many downstream tools, so both are quarantined. Every other
control character (real LaTeX corpora hold form feeds where `\frac` lost its backslash) is kept, and documents that
contain one are counted as `control_characters`.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.rendering import as_text
from pipeline.corpus.template import Template

FIELD = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ]
)
"""The span of a template column in a document: bytes [start, end) of the UTF-8 text."""

CORPUS = "corpus"
"""Metadata key for the name of a document's source, if the corpus has several."""

_TEXT = [
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("text", pa.large_string(), nullable=False),
]
_ORIGIN = [
    pa.field("fields", pa.list_(FIELD), nullable=False),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
    pa.field("meta", pa.string(), nullable=False),
]

DOCUMENTS = pa.schema([*_TEXT, pa.field("split", pa.string(), nullable=False), *_ORIGIN])
"""Table `documents`. `meta` is a JSON object: the record's columns that the template does not use."""

CANDIDATES = pa.schema([*_TEXT, *_ORIGIN, pa.field("held_out", pa.bool_(), nullable=False)])
"""Documents before de-duplication and split. `held_out`: the record's own column marks it as held out."""

MODEL_INPUT = ("doc_id", "text", "split", "fields")
"""Columns of the documents that models and shards depend on; the others say where a document is from."""

NESTING = 100
"""Deepest nesting of lists and objects in metadata, because every later stage must be able to read them."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u009f]"


class Document(NamedTuple):
    """A document made from a record."""

    doc_id: str
    text: str
    fields: list[dict[str, Any]]
    meta: str
    held_out: bool


def doc_id(text: str) -> str:
    """Return the identity of a document: 32 hexadecimal digits of the sha256 of its UTF-8 text.

    Example:
        >>> doc_id("two words")
        'a03f1d611645eb53ad16c1af546ca079'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def to_document(values: Mapping[str, Any], template: Template, config: CorpusConfig, corpus: str = "") -> Document:
    """Return the document that a record makes.

    Args:
        values: the record's columns.
        template: the template of its source.
        config: the configuration of its source.
        corpus: the name of its source, if there are several.

    Raises:
        Unusable: with the reason for which the record goes to quarantine.
    """
    text, spans = template.render(values)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Unusable("lone_surrogate", f"U+{ord(text[error.start]):04X} at character {error.start}") from error
    if (nul := text.find("\0")) >= 0:
        raise Unusable("nul_character", f"U+0000 at character {nul}")
    if not text.strip():
        raise Unusable("empty", "no text but white space")
    if size < config.min_document_bytes:
        raise Unusable("too_short", f"{size} bytes, corpus.min_document_bytes is {config.min_document_bytes}")
    if size > config.max_document_bytes:
        raise Unusable("too_long", f"{size} bytes, corpus.max_document_bytes is {config.max_document_bytes}")
    if corpus:
        values = {**values, CORPUS: corpus}
    fields = [{"name": name, "start": start, "end": end} for name, start, end in spans]
    rule = config.validation
    held_out = rule.column is not None and as_text(rule.column, values) == rule.value
    unused = {name: value for name, value in values.items() if name not in template.columns}
    if _depth(unused) > NESTING:
        raise Unusable("not_json", f"nested deeper than {NESTING}")
    meta = to_json(unused)
    return Document(doc_id(text), text, fields, meta, held_out)


def _depth(value: Any) -> int:
    """Return how deep lists and objects are nested; without recursion, which hostile depth would overflow."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, (dict, list, tuple))]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
        if depth > NESTING:
            break
    return depth


def to_json(value: Any) -> str:
    r"""Return `value` as JSON that has UTF-8: a lone surrogate becomes the text of its escape, NaN and infinity null.

    Example:
        >>> print(to_json({"name": "李", "bad": chr(0xD800), "n": float("inf")}))
        {"name": "李", "bad": "\\ud800", "n": null}
    """
    try:
        text = _TO_JSON.encode(value)
    except ValueError:
        finite = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False)
    return text if text.isascii() else _SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> str:
    """Return a column's value as a string: bytes as UTF-8 or base64, dates and decimals as they print."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    return str(value)


_TO_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)
_ROW = json.JSONEncoder(sort_keys=True)
"""Made once: `json.dumps` with settings makes an encoder for each value, which costs more than a short document."""


def text_digest(documents: pa.Table) -> str:
    """Return the sha256 of the columns `MODEL_INPUT` of documents, in their order."""
    digest = hashlib.sha256()
    for batch in documents.select(MODEL_INPUT).to_batches(max_chunksize=64):
        digest.update("".join([f"{_ROW.encode(row)}\n" for row in batch.to_pylist()]).encode())
    return digest.hexdigest()


def count_control_characters(texts: pa.ChunkedArray) -> int:
    """Return the number of texts with a control character other than tab, line feed and carriage return."""
    return pc.sum(pc.match_substring_regex(texts, _CONTROL)).as_py() or 0
