from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.documents import to_document
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.json_values import parse_json_object
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.scan import scan
from pipeline.corpus.sources.finding import find_files
from pipeline.corpus.template import Template
from tests.corpus.corpora import jsonl, manifest

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(path: Path, format: str = "auto", **corpus: Any) -> list[Record]:
    (file,) = find_files(str(path), format)
    return list(read_records(Slice(file), manifest(**corpus).corpus))


def values(records: list[Record]) -> list[Any]:
    return [(r.value.reason if isinstance(r.value, Unusable) else r.value) for r in records]


# ---------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{oops}", "not_json"),
        (b'{"a": 1', "not_json"),
        (b'{"a": 1} {"a": 2}', "not_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json"),
        (b"[1, 2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "not_utf8"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        (b'{"a": [{"b": {"c": 1}, "d": [{}, {"c": 1, "c": 1}]}], "e": {}}', "duplicate_key"),
    ],
)
def test_json_that_is_no_record(raw: bytes, reason: str) -> None:
    with pytest.raises(Unusable) as why:
        parse_json_object(raw)
    assert why.value.reason == reason


def test_json_that_is_one() -> None:
    assert parse_json_object(b'{"a": "x\ty\x01", "b": NaN, "c": {"d": 1, "e": {}}}\r\n') == {
        "a": "x\ty\x01",  # a raw control character in a string is against the letter of JSON, and unmistakable
        "b": None,
        "c": {"d": 1, "e": {}},
    }


@pytest.mark.parametrize(
    "raw", [b"{oops}", b'{"a": 1', b'{"a": 1} 2', b'\xef\xbb\xbf{"a": 1}', b'{"a": "\\u12"}', b"-", b""]
)
def test_what_is_wrong_with_json_is_said_as_json_says_it(raw: bytes) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(raw.decode(), strict=False)
    with pytest.raises(Unusable) as why:
        parse_json_object(raw)
    assert why.value.detail == str(expected.value)


def test_the_duplicate_keys_are_named() -> None:
    with pytest.raises(Unusable) as why:
        parse_json_object(b'{"b": 1, "a": 1, "b": 2, "c": {"d": 1, "d": 2, "e": 1}, "a": 3}')
    assert why.value.detail == "`a`, `b`, `d`"


@pytest.mark.parametrize("end", COMPRESS)
def test_json_lines(tmp_path: Path, end: str) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xe2\x80\xa8\xc2\x85"}\n{oops}'
    path = tmp_path / f"x.jsonl{end}"
    path.write_bytes(COMPRESS[end](data))
    records = read(path)
    assert values(records) == [{"a": 1}, {"a": "\u2028\u0085"}, "not_json"]
    assert [(r.row, r.where) for r in records] == [(0, "byte 3"), (3, "byte 17"), (4, "byte 32")]
    for record in records:  # a record can be found again
        offset = int(record.where.split()[1])
        assert record.raw is not None and data[offset:].startswith(record.raw)


@pytest.mark.parametrize("end", COMPRESS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_json_array(tmp_path: Path, end: str, mark: bytes) -> None:
    data = mark + b' [\n {"a": 1},\n {"a": oops}, [],\n {"a": "],{"}\n]\n'
    path = tmp_path / f"x.json{end}"
    path.write_bytes(COMPRESS[end](data))
    records = read(path)
    assert values(records) == [{"a": 1}, "not_json", "not_an_object", {"a": "],{"}]
    assert [r.row for r in records] == [0, 1, 2, 3]
    for record in records:
        offset = int(record.where.split()[1])
        assert record.raw is not None and data[offset:].startswith(record.raw)


def test_json_lines_that_are_named_json(tmp_path: Path) -> None:
    assert values(read(jsonl(tmp_path / "x.json", [{"a": 1}, {"a": 2}]))) == [{"a": 1}, {"a": 2}]


def test_a_truncated_json_array_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'[{"a": 1}, {"a"')
    with pytest.raises(UserError, match=r"source cannot be read: x\.json"):
        read(tmp_path / "x.json")


def test_the_records_of_one_object_are_named_or_found(tmp_path: Path) -> None:
    tree = {"about": {"tags": ["x"]}, "data": {"items": [{"text": "a"}, {"text": "]}"}], "none": []}, "end": '"]}'}
    (tmp_path / "x.json").write_text(json.dumps(tree, indent=1))
    expected = [{"text": "a"}, {"text": "]}"}]
    assert values(read(tmp_path / "x.json")) == values(read(tmp_path / "x.json", records="data.items")) == expected
    with pytest.raises(UserError, match=r"`corpus\.records` names the list `items`, which does not exist") as error:
        read(tmp_path / "x.json", records="items")
    assert error.value.hint == "its keys: about, data, end; its lists: about.tags, data.items, data.none"
    (tmp_path / "x.json").write_text(json.dumps({"a": expected, "b": expected}))
    with pytest.raises(UserError, match=r"several have the columns of `corpus\.text`") as error:
        read(tmp_path / "x.json")
    assert error.value.hint == "set corpus.records to one of: a, b"
    with pytest.raises(UserError, match="neither it nor a list in it has the columns") as error:
        read(tmp_path / "x.json", text="{body}")
    assert error.value.hint == (
        "its keys: a, b; its lists: a, b; records of `a`: text; records of `b`: text; "
        "name columns of one of these in corpus.text"
    )


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Apples",
            "paragraphs": [
                {"context": "One. Two.", "qas": [{"id": "a", "question": "é?", "answers": [{"text": "One"}]}]},
                {"context": "Three.", "qas": []},
            ],
        },
        {"title": "No list"},
        {
            "title": "Pears",
            "paragraphs": [
                {
                    "context": "Four.",
                    "qas": [
                        {"id": "b", "question": "?", "answers": [{"text": "Four"}, {"text": "4"}]},
                        {"id": "c", "question": "!", "answers": []},
                    ],
                }
            ],
        },
    ],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_records_in_lists_inside_the_elements_of_lists(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "x.json").write_text(json.dumps(SQUAD, indent=indent, ensure_ascii=False))
    records = read(tmp_path / "x.json", records="data[].paragraphs[].qas", text="{question}")
    assert values(records) == [
        {"title": "Apples", "context": "One. Two.", "id": "a", "question": "é?", "answers": [{"text": "One"}]},
        "missing_column",
        {
            "title": "Pears",
            "context": "Four.",
            "id": "b",
            "question": "?",
            "answers": [{"text": "Four"}, {"text": "4"}],
        },
        {"title": "Pears", "context": "Four.", "id": "c", "question": "!", "answers": []},
    ]
    data = (tmp_path / "x.json").read_bytes()
    for n, record in enumerate(records):
        assert record.row == n and record.raw
        assert data[int(record.where.split()[1]) :].startswith(record.raw)
    assert json.loads(records[2].raw or b"")["id"] == "b"
    found = read(tmp_path / "x.json", text="{context}\n{question}\n{answers[].text}")
    assert values(found) == values(records), "the only list whose elements have context, question and answers"
    contexts = read(tmp_path / "x.json", text="{title}: {context}")
    assert [r.value["context"] for r in contexts if isinstance(r.value, dict)] == ["One. Two.", "Three.", "Four."]
    with pytest.raises(UserError, match="neither it nor a list in it") as error:
        read(tmp_path / "x.json", text="{body}")
    assert error.value.hint.startswith(
        "its keys: data, version; its lists: data; records of `data`: title, paragraphs; "
    )
    assert "records of `data[].paragraphs[].qas`: title, context, id, question, answers" in error.value.hint


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_records_in_a_list_of_every_line_or_element(tmp_path: Path, name: str) -> None:
    rows = [{"id": n, "turns": [{"text": f"{n}{m}"} for m in "ab"]} for n in range(3)]
    array = json.dumps(rows) if name == "x.json" else "\n".join([*map(json.dumps, rows), "oops"])
    (tmp_path / name).write_text(array)
    expected = [{"id": n, "text": f"{n}{m}"} for n in range(3) for m in "ab"]
    assert values(read(tmp_path / name, records="[].turns"))[:6] == expected
    (file,) = find_files(str(tmp_path / name))
    assert len(scan(file, manifest(records="[].turns").corpus, slice_bytes=10).slices) == 1, "rows count from the start"
    if name == "x.json":
        assert values(read(tmp_path / name, text="{id}: {text}")) == expected, "found"
        assert values(read(tmp_path / name)) == rows, "much is called `text`"
    else:
        assert values(read(tmp_path / name, records="[].turns"))[6:] == ["not_json"]
    with pytest.raises(UserError, match="this one is a list of objects") as error:
        read(tmp_path / name, records="turns")
    assert "`[].turns`" in error.value.hint


def test_a_key_in_more_than_one_block_of_the_stream(tmp_path: Path) -> None:
    key = 'quoted " and \\ and é'
    tree = {"filler": "x" * ((1 << 20) - 30), key: {"rows": [{"text": "a"}]}}
    (tmp_path / "x.json").write_text(json.dumps(tree, ensure_ascii=False))
    assert values(read(tmp_path / "x.json", records=f"{key}.rows")) == [{"text": "a"}]


@pytest.mark.parametrize("value", [{"text": "x"}, [{"text": "x"}, {"text": "y"}], {"data": [{"text": "x"}]}])
def test_one_value_over_many_lines_is_no_json_lines(tmp_path: Path, value: Any) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(value, indent=2))
    with pytest.raises(UserError, match=r"one JSON (object|array) over many lines: x\.jsonl") as error:
        read(tmp_path / "x.jsonl")
    assert "corpus.format: json" in error.value.hint
    records = read(tmp_path / "x.jsonl", "json")
    assert records and all(isinstance(record.value, dict) for record in records)


def test_what_stands_between_objects_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{\n"text": "a"\n}\nlost\n{\n"text": "b"\n}\n')
    with pytest.raises(UserError, match=r"source cannot be read: x\.json .*'lost' stands outside"):
        read(tmp_path / "x.json")


# ----------------------------------------------------------------------------------------------- encodings


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8), max_size=8),
    st.sampled_from(["utf-16", "utf-16-be", "utf-32-le", "gb18030"]),
)
@settings(max_examples=50)
def test_lines_of_another_encoding_keep_their_bytes_and_places(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], encoding: str
) -> None:
    data = "".join(f"{text}\n" for text in texts).encode(encoding)
    path = tmp_path_factory.mktemp("text") / "x.txt"
    path.write_bytes(data)
    records = read(path, encoding=encoding, document_break="line")
    assert [r.value["text"] for r in records if isinstance(r.value, dict)] == [
        text.rstrip("\r") for text in texts if text.encode().strip()
    ]
    for record in records:
        assert record.raw and data[int(record.where.split()[1]) :].startswith(record.raw)


def test_utf16_without_a_mark_is_never_guessed(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("text\nsome words here\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"utf-16 without a byte order mark: x\.csv .*it looks like utf-16-le"):
        read(tmp_path / "x.csv", encoding="utf-16")
    with pytest.raises(UserError, match=r"the file looks like utf-16-le: x\.csv .*corpus\.encoding: utf-16-le"):
        read(tmp_path / "x.csv")


def test_a_form_that_cannot_be_told_afterwards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xfa\x54\n")  # NEC's and IBM's codes of the same sign
    with pytest.raises(UserError, match="two forms of a character"):
        read(tmp_path / "x.txt", encoding="cp932")


# ----------------------------------------------------------------------------------------------------- CSV


def test_the_dialect_is_found_and_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a;b\n1,5;2\n")
    assert values(read(tmp_path / "x.csv")) == [{"a": "1,5", "b": "2"}]
    assert values(read(tmp_path / "x.csv", csv={"delimiter": ","})) == ["not_csv"]
    assert values(read(tmp_path / "x.csv", csv={"header": False})) == [{"0": "a", "1": "b"}, {"0": "1,5", "1": "2"}]


@pytest.mark.parametrize("end", COMPRESS)
def test_csv(tmp_path: Path, end: str) -> None:
    data = '\ufeffq,a\r\n"one, ""two""\nthree",4\n\nfünf\u0085\u2028,\r\nx\n'.encode() + b"\xff,1\n"
    path = tmp_path / f"x.csv{end}"
    path.write_bytes(COMPRESS[end](data))
    records = read(path)
    assert values(records) == [
        {"q": 'one, "two"\nthree', "a": "4"},
        {"q": "fünf\u0085\u2028", "a": ""},
        "not_csv",
        "not_utf8",
    ]
    assert [r.row for r in records] == [0, 1, 2, 3]
    assert [r.raw for r in records[2:]] == [b"x\n", b"\xff,1\n"]
    assert [data[int(r.where.split()[1]) :].startswith(r.raw or b"?") for r in records] == [True] * 4


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'q,a\n1,2\n"3,4\n5,6\n' + b"7,8\n" * 1000)
    records = read(tmp_path / "x.csv")
    assert values(records[:3]) == [{"q": "1", "a": "2"}, "not_csv", {"q": "5", "a": "6"}]
    assert records[1].raw == b'"3,4\n'
    assert len(records) == 1003


def test_a_csv_row_beyond_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.readers.csv.CSV_ROW_LIMIT", 100)
    (tmp_path / "x.csv").write_bytes(b"q,a\n" + b"x" * 200 + b",1\n2,3\n")
    assert values(read(tmp_path / "x.csv")) == ["not_csv", {"q": "2", "a": "3"}]


@pytest.mark.parametrize(("data", "what"), [(b"a,b,a\n1,2,3\n", "twice"), (b'"a\n1\n', "not CSV")])
def test_a_csv_header_that_names_no_columns(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(UserError, match=what):
        read(tmp_path / "x.csv")


CELL = st.text(st.sampled_from('ab,"\n\r é\u0085'), max_size=6)


@given(st.lists(st.tuples(CELL, CELL).filter(lambda row: any(row)), max_size=6))
@settings(max_examples=50)
def test_csv_reads_what_csv_writes(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("q", "a"), *rows])
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(text.getvalue().encode())
    assert values(read(path)) == [{"q": q, "a": a} for q, a in rows]


# ------------------------------------------------------------------------------------------------- Parquet


def parquet(path: Path, table: pa.Table, row_group: int = 2) -> Path:
    pq.write_table(table, path, row_group_size=row_group)
    return path


@pytest.mark.parametrize("end", COMPRESS)
def test_parquet(tmp_path: Path, end: str) -> None:
    table = pa.table(
        {
            "q": ["one", "two", None],
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "n": [1.5, float("nan"), 2],
            "l": [["x"], [], None],
        }
    )
    parquet(tmp_path / "x.parquet", table)
    path = tmp_path / f"x.parquet{end}"
    path.write_bytes(COMPRESS[end]((tmp_path / "x.parquet").read_bytes()))
    records = read(path)
    assert values(records) == [
        {"q": b"one", "d": b"a", "n": 1.5, "l": ["x"]},
        {"q": b"two", "d": b"b", "n": None, "l": []},
        {"q": None, "d": b"a", "n": 2.0, "l": None},
    ]
    assert [(r.row, r.where) for r in records] == [(0, "row group 0"), (1, "row group 0"), (2, "row group 1")]


def test_bytes_that_are_no_utf8_spoil_their_own_row_alone(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff"])
    table = pa.table(
        {
            "q": pa.Array.from_buffers(pa.string(), 2, bad.buffers()),
            "l": pa.ListArray.from_arrays([0, 1, 2], pa.Array.from_buffers(pa.string(), 2, bad.buffers())),
            "n": [1, 2],
        }
    )
    good, broken = read(parquet(tmp_path / "x.parquet", table))
    assert good.value == {"q": b"a", "l": ["a"], "n": 1}
    assert isinstance(broken.value, Unusable) and broken.value.reason == "not_utf8"
    assert json.loads(broken.raw or b"") == {"q": "/w==", "l": ["/w=="], "n": 2}  # base64 where it is no text


@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"x" * 50])
def test_damaged_parquet_is_an_error(tmp_path: Path, damage: Any) -> None:
    path = parquet(tmp_path / "x.parquet", pa.table({"q": ["x" * 1000] * 100}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"source cannot be read: x\.parquet"):
        read(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(UserError, match=r"two columns have one name: x\.parquet \(rename one `text`\)"):
        read(parquet(tmp_path / "x.parquet", table))
    inside = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    table = pa.table({"text": ["x"], "l": pa.ListArray.from_arrays([0, 1], inside)})
    with pytest.raises(UserError, match=r"two columns have one name: y\.parquet \(rename one `a`\)"):
        read(parquet(tmp_path / "y.parquet", table))


def test_a_column_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "Caf!": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"Caf!", b"Caf\xe9"))
    with pytest.raises(UserError, match=r"the name of a column is not UTF-8: x\.parquet"):
        read(path)


def varint(number: int) -> bytes:
    """A positive number as a footer (Thrift's compact protocol) holds it."""
    number, out = 2 * number, b""
    while number > 127:
        number, out = number >> 7, out + bytes([number & 127 | 128])
    return out + bytes([number])


@pytest.mark.parametrize("columns", [["q"], ["q", "l"]])
@pytest.mark.parametrize(("holds", "says"), [(400, 500), (500, 400)])
def test_a_row_group_of_other_rows_than_its_footer_says_is_an_error(
    tmp_path: Path, holds: int, says: int, columns: list[str]
) -> None:
    """A writer that died, or lies: readers take the footer's word, or stop where the pages end."""
    path = tmp_path / "x.parquet"
    table = pa.table({"q": [f"row {i}" for i in range(holds)], "l": [[i, i] for i in range(holds)]}).select(columns)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for field in (b"\x16", b"\x26"):  # i64 fields: `num_rows` of the file and of the row group, not of the column
        old, new = field + varint(holds), field + varint(says)
        if field == b"\x16":
            at = data.rindex(old, footer)
            data = data[:at] + new + data[at + len(old) :]
            at = data.index(old, footer)
            data = data[:at] + new + data[at + len(old) :]
    path.write_bytes(data)
    assert pq.read_metadata(path).row_group(0).num_rows == says
    with pytest.raises(UserError, match=rf"rows where the footer says {says}: x\.parquet, row group 0"):
        read(path)


# ------------------------------------------------------------------------------------- values of Parquet columns


def written(path: Path, **columns: pa.Array) -> list[dict[str, Any]]:
    """The metadata that each row of a Parquet file makes."""
    records = read(
        parquet(path / "x.parquet", pa.table({"text": ["x"] * len(next(iter(columns.values()))), **columns}))
    )
    template, corpus = Template.parse("{text}"), manifest().corpus
    return [json.loads(to_document(dict(record.value), template, corpus).meta) for record in records]  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", ["flat", "list", "struct", "map"])
def test_single_precision_prints_the_digits_that_are_in_the_data(tmp_path: Path, wrap: str) -> None:
    numbers = pa.array([0.1, 16777216.0, 1e-20, 3.4e38, None, float("nan")], pa.float32())
    wrapped, unwrap = {
        "flat": (numbers, lambda value: value),
        "list": (pa.ListArray.from_arrays(list(range(7)), numbers), lambda value: value[0]),
        "struct": (pa.StructArray.from_arrays([numbers], ["x"]), lambda value: value["x"]),
        "map": (
            pa.MapArray.from_arrays(list(range(7)), pa.array(list("abcdef")), numbers),
            lambda value: value[0][1],
        ),
    }[wrap]
    rows = written(tmp_path, n=wrapped)
    assert [unwrap(row["n"]) for row in rows] == [0.1, 16777216.0, 1e-20, 3.4e38, None, None]


def test_half_precision_prints_the_digits_that_are_in_the_data(tmp_path: Path) -> None:
    numbers = pa.array([0.1, 2048, None], pa.float16())
    assert written(tmp_path, n=numbers) == [{"n": 0.1}, {"n": 2048.0}, {"n": None}]


def instants(kind: pa.DataType, *values: int) -> pa.Array:
    width = pa.int32() if kind in (pa.date32(), pa.time32("s"), pa.time32("ms")) else pa.int64()
    return pa.array(values, width).view(kind)


SECOND = 10**9
TIMES: list[tuple[pa.Array, list[str]]] = [
    (instants(pa.date32(), 18262, 10**7, -(10**7)), ["2020-01-01", "29349-01-26", "-25410-12-06"]),
    (instants(pa.timestamp("ms"), 0, 10**16), ["1970-01-01 00:00:00", "318857-05-20 17:46:40.000"]),
    (
        instants(pa.timestamp("us", "UTC"), 1, 10**18),
        ["1970-01-01 00:00:00.000001+00:00", "33658-09-27 01:46:40.000000+00:00"],
    ),
    (
        instants(pa.timestamp("ns"), 0, 1000, 1, -1, 3 * SECOND + 10**6 + 20),
        [
            "1970-01-01 00:00:00",
            "1970-01-01 00:00:00.000001",
            "1970-01-01 00:00:00.000000001",
            "1969-12-31 23:59:59.999999999",
            "1970-01-01 00:00:03.001000020",
        ],
    ),
    (
        instants(pa.timestamp("ns", "Asia/Kolkata"), 0, 1),
        ["1970-01-01 05:30:00+05:30", "1970-01-01 05:30:00.000000001+05:30"],
    ),
    (instants(pa.time64("ns"), SECOND, SECOND + 1), ["00:00:01", "00:00:01.000000001"]),
    (instants(pa.duration("ns"), 90 * SECOND, 1), ["0:01:30", "0:00:00.000000001"]),
    (instants(pa.duration("ms"), 90_000, 10**18), ["0:01:30", "1000000000000000000 ms"]),
]  # fmt: skip


@pytest.mark.parametrize(("column", "expected"), TIMES, ids=[str(column.type) for column, _ in TIMES])
def test_times_that_python_cannot_hold_are_text(tmp_path: Path, column: pa.Array, expected: list[str]) -> None:
    """Whether pandas is installed or not: with it, `to_pylist` gives other objects."""
    assert [row["t"] for row in written(tmp_path, t=column)] == expected
    lists = pa.ListArray.from_arrays(list(range(len(column) + 1)), column)
    assert [row["t"] for row in written(tmp_path, t=lists)] == [[text] for text in expected]


def test_a_time_in_the_template_is_its_text(tmp_path: Path) -> None:
    table = pa.table({"t": instants(pa.timestamp("ns"), 1), "d": instants(pa.date32(), 10**7)})
    (record,) = read(parquet(tmp_path / "x.parquet", table))
    text, _ = Template.parse("{t} {d}").render(record.value)  # type: ignore[arg-type]
    assert text == "1970-01-01 00:00:00.000000001 29349-01-26"


# --------------------------------------------------------------------------------------------- files made to fill


def bomb(path: Path, kind: str) -> Path:
    """Some kilobytes that become 20 MB or more."""
    long, zeros = pa.array(["x" * 1_000_000]), pa.array([0] * 3_000_000, pa.int64())
    index = pa.array([0] * 4000, pa.int32())
    same = pa.DictionaryArray.from_arrays(index, long)
    columns = {
        "one long string": pa.array(["x" * 20_000_000]),
        "a string that many rows have": same,
        "a string many times in a row": pa.LargeListArray.from_arrays([0, len(same)], same),
        "a long list": pa.ListArray.from_arrays([0, len(zeros)], zeros),
        "many rows": zeros,
    }
    pq.write_table(
        pa.table({"x": columns[kind]}), path, compression="zstd", store_schema=False, row_group_size=5_000_000
    )
    return path


@pytest.mark.parametrize(
    "kind",
    ["one long string", "a string that many rows have", "a string many times in a row", "a long list", "many rows"],
)
def test_parquet_that_becomes_far_more_than_its_size_is_refused(tmp_path: Path, kind: str) -> None:
    path = bomb(tmp_path / "x.parquet", kind)
    assert path.stat().st_size < 50_000
    before = pa.total_allocated_bytes()
    (file,) = find_files(str(path))
    with pytest.raises(UserError, match=r"bytes unpack to .* x\.parquet, row group 0 .*corpus\.max_unpacked_bytes"):
        for record in read_records(Slice(file), manifest(max_unpacked_bytes=10_000_000).corpus):
            assert pa.total_allocated_bytes() - before < 60_000_000
            del record


def test_the_manifest_can_raise_what_parquet_may_become(tmp_path: Path) -> None:
    (record,) = read(bomb(tmp_path / "x.parquet", "one long string"))
    assert len(record.value["x"]) == 20_000_000  # type: ignore[index]


def test_a_compressed_parquet_file_is_unpacked_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "x.parquet.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(UserError, match=r"bytes unpack to .* x\.parquet\.gz"):
        read(tmp_path / "x.parquet.gz", max_unpacked_bytes=1_000_000)


# ---------------------------------------------------------------------------------------------------- text


TEXT = "\ufeffTitle\r\n\r\none\x0cone\ntwo\u2028two\n \t\n\nthree\n\n\nlast".encode()


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ({"document_break": "file"}, [(0, 3, "Title\r\n\r\none\x0cone\ntwo\u2028two\n \t\n\nthree\n\n\nlast")]),
        (
            {"document_break": "line"},
            [
                (0, 3, "Title"),
                (2, 12, "one\x0cone"),
                (3, 20, "two\u2028two"),
                (6, 34, "three"),
                (9, 42, "last"),
            ],
        ),
        (
            {"document_break": "blank_lines", "document_bytes": 1},
            [(0, 3, "Title"), (1, 12, "one\x0cone\ntwo\u2028two"), (2, 34, "three"), (3, 42, "last")],
        ),
        (
            {"document_break": "blank_lines", "document_bytes": 26},
            [(0, 3, "Title"), (1, 12, "one\x0cone\ntwo\u2028two"), (2, 34, "three\n\n\nlast")],
        ),
    ],
)
@pytest.mark.parametrize("end", COMPRESS)
def test_text(tmp_path: Path, corpus: dict[str, Any], expected: list[tuple[int, int, str]], end: str) -> None:
    path = tmp_path / f"x.txt{end}"
    path.write_bytes(COMPRESS[end](TEXT))
    records = read(path, **corpus)
    assert values(records) == [{"text": text, "byte_offset": offset} for _, offset, text in expected]
    assert [r.row for r in records] == [row for row, _, _ in expected]


# ------------------------------------------------------------------------------------------------- slicing


def sliced(path: Path, slice_bytes: int, **corpus: Any) -> tuple[int, list[Record]]:
    (file,) = find_files(str(path))
    config = manifest(**corpus).corpus
    about = scan(file, config, slice_bytes)
    return len(about.slices), [record for part in about.slices for record in read_records(part, config)]


@given(
    st.lists(st.sampled_from(["", "{}", '{"a": "xy"}', "oops", '{"a": "é\\n"}']), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 40),
    st.booleans(),
)
@settings(max_examples=100)
def test_slices_of_json_lines_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, slice_bytes: int, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("slices") / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * mark + end.join(lines).encode())
    assert _comparable(sliced(path, slice_bytes)[1]) == _comparable(read(path))


@given(st.text(st.sampled_from("ab\n\n\r "), max_size=80), st.integers(1, 30), st.sampled_from(["blank_lines", "line"]))
@settings(max_examples=100)
def test_slices_of_text_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, slice_bytes: int, document_break: str
) -> None:
    path = tmp_path_factory.mktemp("slices") / "x.txt"
    path.write_bytes(text.encode())
    corpus = {"document_break": document_break, "document_bytes": 8}
    assert _comparable(sliced(path, slice_bytes, **corpus)[1]) == _comparable(read(path, **corpus))


def test_parquet_is_sliced_by_row_groups(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", pa.table({"q": [str(i) for i in range(20)]}), row_group=3)
    count, records = sliced(path, 1)
    assert count == 7
    assert _comparable(records) == _comparable(read(path))


def test_slices_hold_about_as_many_bytes_as_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"a": "x" * 90} for _ in range(30_000)])  # 100 bytes a line, 3 MB
    count, records = sliced(path, 100_000)
    assert count == 30
    assert [(r.row, r.where) for r in records] == [(i, f"byte {100 * i}") for i in range(30_000)]


def _comparable(records: list[Record]) -> list[tuple[object, ...]]:
    return [(r.row, r.where, r.raw, value) for r, value in zip(records, values(records), strict=True)]


@pytest.mark.parametrize("end", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_a_large_compressed_file_is_cut_into_few_pieces(tmp_path: Path, name: str, end: str) -> None:
    rng = random.Random(0)
    lines = [json.dumps({"text": f"{rng.getrandbits(2000):x}"}) for _ in range(400)]
    path = tmp_path / f"{name}{end}"
    path.write_bytes(COMPRESS[end]("\n".join(lines).encode()))
    (file,) = find_files(str(path))
    config = manifest(document_break="line", format="jsonl" if name == "x.jsonl" else "text").corpus
    about = scan(file, config, slice_bytes=1000)
    assert 8 < len(about.slices) <= 16
    whole = list(read_records(Slice(file), config))
    assert [record for part in about.slices for record in read_records(part, config)] == whole
    assert len(whole) == 400
