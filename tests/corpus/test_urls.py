"""XML by record and WebDataset tars from URLs of fsspec (`memory://` stands for `s3://` and the like)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.corpora.shapes import TEXTS, tarred
from tests.corpus.corpora import run

XML = f"<f>{''.join(f'<e><t>{text}</t></e>' for text in TEXTS)}<e><t>R&D</t></e></f>".encode()
TAR = tarred({f"{n}.{end}": data for n, t in enumerate(TEXTS) for end, data in (("txt", t.encode()), ("cls", b"1"))})


@pytest.fixture
def bucket() -> Iterator[None]:
    store = fsspec.filesystem("memory")
    files = {"xml/x.xml": XML, "tar/a.tar": TAR}
    files |= {"packed/x.xml.gz": gzip.compress(XML), "tar/b.tar.gz": gzip.compress(TAR)}
    for name, data in files.items():
        with store.open(f"/bucket/{name}", "wb") as file:
            file.write(data)
    yield
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("source", ["xml/x.xml", "xml", "x*/*.xml", "packed/x.xml.gz", "simplecache::xml/x.xml"])
@pytest.mark.parametrize("corpus", [{"text": "{t}"}, {"text": "{t}", "records": "f.e"}], ids=["found", "named"])
@pytest.mark.usefixtures("bucket")
def test_records_of_xml(tmp_path: Path, source: str, corpus: dict[str, Any]) -> None:
    result = run(tmp_path / "work", _address(source), **corpus)
    assert result.texts == TEXTS and result.reasons == ["not_xml"]
    assert result.quarantine[0]["raw"] == b"<e><t>R&D</t></e>"
    assert [row["source_row"] for row in result.documents] == list(range(len(TEXTS)))
    assert {row["source_file"].rpartition("/")[2] for row in result.documents} <= {"x.xml", "x.xml.gz"}


@pytest.mark.parametrize("source", ["tar/a.tar", "tar/b.tar.gz", "t*/a.tar", "simplecache::tar/a.tar"])
@pytest.mark.usefixtures("bucket")
def test_samples_of_web_datasets(tmp_path: Path, source: str) -> None:
    pytest.importorskip("datasets")
    result = run(tmp_path / "work", _address(source), text="{cls}: {txt}")
    assert result.texts == [f"1: {text}" for text in TEXTS]
    assert [row["source_row"] for row in result.documents] == list(range(len(TEXTS)))


def _address(source: str) -> str:
    chain, _, path = source.rpartition("::")
    return f"{chain}::memory://bucket/{path}" if chain else f"memory://bucket/{path}"
