"""HTML and XML files as one document each, by `trafilatura` and `lxml` (the extra `html`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.record_splitter import RawRecord
from pipeline.corpus.readers.records import Record, Slice, make_record, utf8
from pipeline.corpus.readers.text import whole
from pipeline.corpus.readers.xml_layout import find_elements
from pipeline.corpus.readers.xml_records import read_elements

FORMATS = ("html", "xml")
"""Formats whose text depends on the version of a library."""


def library_versions() -> str:
    """Return the versions of the libraries, which decide the text.

    Raises:
        ImportError: they are not installed.
    """
    _import()
    return f"trafilatura {version('trafilatura')}, lxml {version('lxml')}"


def _import() -> Any:
    try:
        import trafilatura
    except ImportError as error:
        raise ImportError("HTML and XML need the extra `html`: pip install 'rpt[html]'") from error
    return trafilatura


def read_html(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield one record: the columns `text`, the main content of the page, and `title`."""
    _import()
    with DecodedFile(part.file, config) as text:
        yield make_record(part.row, whole(text), _html, text)


def _html(piece: RawRecord) -> Mapping[str, Any]:
    trafilatura = _import()
    page = utf8(piece.data)
    text = trafilatura.extract(page, include_comments=False, include_tables=True)
    if not text:
        raise Unusable("no_text", "trafilatura found no main content in the page")
    about = trafilatura.extract_metadata(page)
    return {"text": text, "title": about.title if about else None}


def read_xml(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the elements that are records (`find_elements`), or the file as one.

    As one, it has the columns `text`, all text between the tags, and `root`, the name of the outermost element. Without
    `corpus.encoding` the file's own declaration tells its encoding. Entities are not resolved from outside.
    """
    path = find_elements(part, config)
    if path is not None:
        return (yield from read_elements(part, config, path))
    _import()
    # As bytes: the standard says where the encoding stands.
    plain = config if config.encoding != "utf-8" else config.model_copy(update={"encoding": "latin-1"})
    with DecodedFile(part.file, plain) as text:
        parse = _xml_in_utf8 if config.encoding != "utf-8" else _xml_as_declared
        yield make_record(part.row, whole(text), parse, text)


def _xml_in_utf8(piece: RawRecord) -> Mapping[str, Any]:
    return _xml(utf8(piece.data).encode(), "utf-8")


def _xml_as_declared(piece: RawRecord) -> Mapping[str, Any]:
    return _xml(piece.data.decode().encode("latin-1"), None)


def _xml(data: bytes, encoding: str | None) -> Mapping[str, Any]:
    from lxml import etree

    parser = etree.XMLParser(
        encoding=encoding, resolve_entities="internal", no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, LookupError, ValueError) as error:
        raise Unusable("not_xml", str(error)) from error
    lines = (line.strip() for line in "".join(root.itertext()).splitlines())
    return {"text": "\n".join(line for line in lines if line), "root": etree.QName(root).localname}
