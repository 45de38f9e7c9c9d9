"""XML files with many records: which elements they are, their bytes, and what is broken."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.records import Record
from pipeline.corpus.readers.xml_records import _Reading
from tests.corpus.corpora import run
from tests.corpus.readers.test_readers import read, values

DUMP = """<?xml version="1.0" encoding="iso-8859-1"?>
<m:mediawiki xmlns:m="urn:m"><m:siteinfo><m:name>W</m:name></m:siteinfo>
  <m:page><m:title>Caf\xe9</m:title>
    <m:revision><m:id>7</m:id><m:text bytes="3">One &lt;b&gt; two</m:text></m:revision></m:page>
  <!-- <m:page> --><m:page><m:title>B</m:title><m:redirect title="C"/>
    <m:revision><m:id>8</m:id><m:text bytes="1"><![CDATA[</m:page>]]></m:text></m:revision></m:page></m:mediawiki>
""".encode("latin-1")


def test_the_records_of_an_xml_dump_are_named_or_found(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(DUMP)
    expected = [
        {"title": "Café", "revision": {"id": "7", "text": "One <b> two"}},
        {"title": "B", "redirect": {"title": "C"}, "revision": {"id": "8", "text": "</m:page>"}},
    ]
    for about in ({"records": "mediawiki.page"}, {"text": "{title}: {revision.text}"}):
        records = read(tmp_path / "x.xml", **about)
        assert values(records) == expected
        for record in records:
            assert record.raw and record.raw.startswith(b"<m:page>") and record.raw.endswith(b"</m:page>")
            assert DUMP[int(record.where.split()[1]) :].startswith(record.raw)
    with pytest.raises(UserError, match="names the element `page`, which does not exist") as error:
        read(tmp_path / "x.xml", records="page")
    assert "`mediawiki.page` (2): title, revision, redirect" in error.value.hint
    with pytest.raises(UserError, match=r"no element of this XML file has the columns of `corpus\.text` \(body\)"):
        read(tmp_path / "x.xml", text="{body}")
    (tmp_path / "x.xml").write_bytes(b"<d><a><t>1</t></a><b><t>2</t></b></d>")
    with pytest.raises(UserError, match="several elements have the columns") as error:
        read(tmp_path / "x.xml", text="{t}")
    assert error.value.hint == "set corpus.records to one of: d.a, d.b"


def test_entities_of_xml_are_those_of_the_file_and_never_lost(tmp_path: Path) -> None:
    """One that lies elsewhere is not fetched, and its record is quarantined; one that explodes stops the run."""
    own, secret = '<!ENTITY o "own">', tmp_path / "secret"
    secret.write_text("secret")
    head = f'<!DOCTYPE r [{own}<!ENTITY s SYSTEM "{secret.as_uri()}">]>'
    (tmp_path / "x.xml").write_text(f"{head}<r><e><t>a &o; b &amp; c</t></e><e><t>a &s; b</t></e><e><t>d</t></e></r>")
    assert values(read(tmp_path / "x.xml", records="r.e")) == [{"t": "a own b & c"}, "not_xml", {"t": "d"}]
    more = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9))
    (tmp_path / "x.xml").write_text(f'<!DOCTYPE r [<!ENTITY e0 "{"y" * 100}">{more}]><r><e><t>&e8;</t></e></r>')
    with pytest.raises(UserError, match=r"not well-formed XML, after 0 records: .*amplification"):
        read(tmp_path / "x.xml", records="r.e")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_records_of_xml_over_many_blocks_and_a_file_that_is_cut(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attributes are columns, too; a record that is too long is quarantined, and those after it are whole."""
    monkeypatch.setattr("pipeline.corpus.readers.xml_records._BLOCK", 100)
    monkeypatch.setattr("pipeline.corpus.readers.xml_records.RECORD_LIMIT", 300)
    bodies = [f"text {n} é🙂" if n != 40 else "x" * 5000 for n in range(90)]
    posts = "".join(f'<row Id="{n}" Body="{body}" />\n' for n, body in enumerate(bodies))
    data = f'<?xml version="1.0" encoding="{encoding}"?>\n<posts>\n{posts}</posts>'.encode(encoding)
    (tmp_path / "x.xml").write_bytes(data)
    records = read(tmp_path / "x.xml", text="{Body}")
    assert values(records) == [{"Id": str(n), "Body": b} if n != 40 else "too_long" for n, b in enumerate(bodies)]
    for record in records:
        offset = int(record.where.split()[1])
        assert record.raw and data[offset:].startswith(record.raw)
        assert data[offset:].decode(encoding.replace("16", "16-le")).startswith("<row Id=")
    (tmp_path / "x.xml").write_bytes(data[: len(data) - 200])
    cut = read(tmp_path / "x.xml", text="{Body}")
    assert values(cut)[:-1] == values(records)[: len(cut) - 1]
    assert values(cut)[-1] == "not_xml" and cut[-1].raw and data[: len(data) - 200].endswith(cut[-1].raw)


# Records of a file of which one is broken; the values that come out, and the bytes that are quarantined.
BROKEN: dict[str, tuple[str, list[Any], list[str]]] = {
    "a bare ampersand": ("<e><t>1</t></e><e><t>R&D</t></e> <e><t>3</t></e>", ["1", None, "3"], ["<e><t>R&D</t></e> "]),
    "an entity of the file after it": ("<e><t>&</t></e><e><t>&o;</t></e>", [None, "own"], ["<e><t>&</t></e>"]),
    "a bare sign": ("<e><t>1</t></e><e><t>2 < 3</t></e><e><t>3</t></e>", ["1", None, "3"], ["<e><t>2 < 3</t></e>"]),
    "an end tag that is missing": (
        "<e><t>1</t></e><e><t>2</t> <e><t>3</t></e><e><t>4</t></e>",
        ["1", None, "3", "4"],
        ["<e><t>2</t> "],
    ),
    "the end tag of the last": ("<e><t>1</t></e><e><t>2</t> ", ["1", None], ["<e><t>2</t> "]),
    "an end tag inside": ("<e><t>1</e><e><t>2</t></e>", [None, "2"], ["<e><t>1</e>"]),
    "an attribute without quotes": ("<e><t>1</t></e><e t=2/><e t='3'/>", ["1", None, "3"], ["<e t=2/>"]),
    "a quote that is not closed": ("<e t='1/>\n<e t='2'/><e t='3'/>", [None, "2", "3"], ["<e t='1/>\n"]),
    "an attribute twice": ("<e t='1' t='2'/><e t='3'/>", [None, "3"], ["<e t='1' t='2'/>"]),
    "a control character": ("<e><t>1\x0c</t></e><e><t>2</t></e>", [None, "2"], ["<e><t>1\x0c</t></e>"]),
    "an entity of HTML": ("<e><t>a&nbsp;b</t></e><e><t>2</t></e>", [None, "2"], ["<e><t>a&nbsp;b</t></e>"]),
    "text between records": ("<e><t>1</t></e>& so on<e><t>2</t></e>", ["1", None, "2"], ["& so on"]),
    "an end tag too many": ("<e><t>1</t></e></x><e><t>2</t></e>", ["1", None, "2"], ["</x>"]),
    "an end of the list in it": ("<e><t>1</t></e></l><e><t>2</t></e><e t='3'/>", ["1", None, "2", "3"], ["</l>"]),
    "names that begin alike": ("<e>&</e><ee/><e-e/><e\n><t>2</t></e>", [None, "2"], ["<e>&</e><ee/><e-e/>"]),
    "both of two": ("<e>&</e><e>&</e><e><t>3</t></e>", [None, None, "3"], ["<e>&</e>", "<e>&</e>"]),
    "the last": ("<e><t>1</t></e><e>&</e>\n", ["1", None], ["<e>&</e>\n"]),
    "records in their like": (
        "<e><e>in</e><t>1</t></e><e><e>in</e><t>2</x></e><e><t>3</t></e>",
        ["1", None, "3"],
        ["<e><e>in</e><t>2</x></e>"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_record_of_xml_that_is_broken_is_quarantined_alone(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are kept, and the records after it are read, wherever a block of the file ends."""
    body, expected, lost = BROKEN[name]
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-be")}"?><!DOCTYPE f [<!ENTITY o "own">]>'
    text = f"{head}<f><about>é</about><l>{body}</l></f>".replace("<e", "<m:e").replace("</e", "</m:e")
    data = ("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding)
    (tmp_path / "x.xml").write_bytes(data)
    for block in (7, 64, 1 << 16):
        monkeypatch.setattr("pipeline.corpus.readers.xml_records._BLOCK", block)
        records = read(tmp_path / "x.xml", records="f.l.e", text="{t}")
        assert [r.value["t"] if isinstance(r.value, dict) else None for r in records] == expected
        assert [raw.replace("m:", "") for raw in _quarantined(records, data, encoding)] == lost
        assert [record.row for record in records] == list(range(len(records)))


def _quarantined(records: list[Record], data: bytes, encoding: str) -> list[str]:
    """The bytes of each broken record, as text; every record's bytes are those at its place."""
    for record in records:
        assert record.raw and data[int(record.where.split()[1]) :].startswith(record.raw)
    broken = [record for record in records if isinstance(record.value, Unusable)]
    assert all(isinstance(record.value, Unusable) and record.value.reason == "not_xml" for record in broken)
    return [(record.raw or b"").decode({"utf-16": "utf-16-le"}.get(encoding, encoding)) for record in broken]


@settings(max_examples=300)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(
                ["&", "<", ">", "'", "\0", *["<e>", "</e>", "<t>", "</t>", "</l>", "</f>", "<![CDATA[", "<!--"]]
            ),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=3,
    ),
    block=st.sampled_from([11, 1 << 16]),
)
def test_whatever_is_broken_in_xml_no_byte_of_a_record_is_lost(edits: list[tuple[int, str, int]], block: int) -> None:
    """A record that no edit touched is read as it is, or lies in the bytes of one that is quarantined."""
    whole = [f"<e>{n} a record</e>" if n % 3 else f"<e a='{n}'><t>it &amp; its</t></e>\n" for n in range(12)]
    text = '<?xml version="1.0"?><f><l>' + "".join(whole) + "</l><z/></f>"
    for place, piece, cut in edits:
        text = text[: 27 + place % 320] + piece + text[27 + place % 320 + cut :]
    data = text.encode()
    patch = pytest.MonkeyPatch()
    patch.setattr("pipeline.corpus.readers.xml_records._BLOCK", block)
    with patch.context():
        pieces = list(_Reading(io.BytesIO(data), ["f", "l", "e"], None).pieces())
    ends = 0
    for piece, _ in pieces:
        assert ends <= piece.offset and data[piece.offset :].startswith(piece.data) and piece.size == len(piece.data)
        ends = piece.offset + piece.size
    for record in whole:
        assert record not in text or any(record.strip().encode() in piece.data for piece, _ in pieces)


def test_the_first_record_may_be_the_broken_one_and_the_root_a_record(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(b"<f><e t=1/><e t='2'/></f>")
    assert values(read(tmp_path / "x.xml", records="f.e", text="{t}")) == ["not_xml", {"t": "2"}]
    one = "<DOC>\n<NO>{}</NO><TEXT>{}</TEXT></DOC>\n"
    data = (
        one.format(1, "a") + one.format(2, "AT&T") + '<?xml version="1.0"?>\n<!DOCTYPE DOC []>\n' + one.format(3, "c")
    )
    (tmp_path / "x.xml").write_text(data)
    records = read(tmp_path / "x.xml", text="{TEXT}")
    assert values(records) == [{"NO": "1", "TEXT": "a"}, "not_xml", {"NO": "3", "TEXT": "c"}]
    assert _quarantined(records, data.encode(), "utf-8")[0].startswith(one.format(2, "AT&T"))


def test_whole_documents_follow_each_other_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the bulk files of patent offices; also where one ends too early."""
    one = '<?xml version="1.0"?>\n<!DOCTYPE f SYSTEM "f.dtd" [ ]>\n<f><n>x</n><e>{}</e><e>{}</e></f>\n'
    data = one.format("a", "b") + one.format("c", "d") + "<f><e>e</e></f><e>f</e></f>\n" + one.format("g", "h")
    (tmp_path / "x.xml").write_text(data)
    for block in (7, 1 << 16):
        monkeypatch.setattr("pipeline.corpus.readers.xml_records._BLOCK", block)
        found = values(read(tmp_path / "x.xml", records="f.e"))
        assert found == [*({"text": text} for text in "abcde"), "not_xml", *({"text": text} for text in "fgh")]
    (tmp_path / "x.xml").write_text(one.format("a", "b") * 2)
    with pytest.raises(UserError, match="records cannot be used") as error:
        run(tmp_path / "work", tmp_path / "x.xml")
    assert "several XML documents, one after the other. To make each a record: corpus.records: f" in str(error.value)


def test_a_broken_file_of_xml_costs_itself_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    broken = {"a.xml": "<f><a &></a>" + "x" * 100_000, "b.xml": "no xml", "c.xml": ""}
    for name, text in broken.items() | {"d.xml": "<f><e><t>one</t></e></f>"}.items():
        (tmp_path / "in" / name).write_text(text)
    for more in ({"text": "{t}"}, {"text": "{t}", "records": "f.e"}):
        result = run(tmp_path / f"work{len(more)}", tmp_path / "in", **more)
        assert result.texts == ["one"] and result.reasons == ["not_xml"] * 3
        kept = {row["source_file"]: row["raw"].decode() for row in result.quarantine}
        assert kept == broken


def test_an_empty_list_of_xml_is_no_wrong_path(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<f><l></l></f>")
    assert read(tmp_path / "x.xml", records="f.l.e", text="{t}") == []
    with pytest.raises(UserError, match="which does not exist"):
        read(tmp_path / "x.xml", records="f.e", text="{t}")


@pytest.mark.parametrize("declared", ["gb2312", "klingon"])
def test_an_encoding_that_the_parser_lacks_is_named(tmp_path: Path, declared: str) -> None:
    (tmp_path / "x.xml").write_bytes(f'<?xml version="1.0" encoding="{declared}"?><f><e><t>1</t></e></f>'.encode())
    for more in ({"text": "{t}"}, {"text": "{t}", "records": "f.e"}):
        with pytest.raises(UserError) as error:
            read(tmp_path / "x.xml", **more)
        assert declared in str(error.value) and "corpus.encoding" in (error.value.hint or "")


def test_a_file_that_is_broken_all_over_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.readers.xml_records._MOST_BROKEN", 3)
    (tmp_path / "x.xml").write_text(f"<f>{'<e>&</e>' * 5}</f>")
    with pytest.raises(UserError, match="not well-formed XML"):
        read(tmp_path / "x.xml", records="f.e")
