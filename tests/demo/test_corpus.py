import gzip
import json
import re
from pathlib import Path

import pytest

from demo import corpus

SHIPPED = Path(corpus.__file__).parent / "corpus.jsonl.gz"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress(SHIPPED.read_bytes()).decode().splitlines()]


def operands(row: dict[str, str]) -> tuple[int, ...]:
    """Start and moves, read back from the problem's text alone."""
    wheel = corpus.WHEELS[corpus.FAMILIES[row["family"]].wheel]
    moves = re.findall(r"\b([ABCD])([1-9])\b", row["problem"])
    assert [label for label, _ in moves] == list("ABCD")
    rest = re.sub(r"\b[ABCD][1-9]\b", "", row["problem"])
    starts = [i for i, state in enumerate(wheel) if re.search(rf"(?<!\w){re.escape(state.strip())}(?!\w)", rest)]
    assert len(starts) == 1, row
    return (starts[0], *(int(move) for _, move in moves))


def test_the_generator_reproduces_the_shipped_corpus() -> None:
    lines = corpus.corpus_lines(
        seed=corpus.SEED,
        validation_seed=corpus.VALIDATION_SEED,
        train=corpus.TRAIN_DOCUMENTS,
        validation=corpus.VALIDATION_DOCUMENTS,
    )
    assert "".join(lines).encode() == gzip.decompress(SHIPPED.read_bytes())


def test_no_operands_of_validation_occur_in_training(rows: list[dict[str, str]]) -> None:
    train = {operands(row) for row in rows if row["split"] == "train"}
    validation = {operands(row) for row in rows if row["split"] == "validation"}
    assert len(train) > 4000 and len(validation) > 900
    assert not train & validation
    assert all(corpus.held_out(start, moves) for start, *moves in validation)
    assert not any(corpus.held_out(start, moves) for start, *moves in train)


def test_solutions_state_the_ends_of_the_walks(rows: list[dict[str, str]]) -> None:
    for row in rows:
        family = corpus.FAMILIES[row["family"]]
        wheel = corpus.WHEELS[family.wheel]
        start, a, b, c, d = operands(row)
        ends = {
            "+": (start + a + b + c + d) % len(wheel),
            "-": (start - a - b - c - d) % len(wheel),
            "*": (16 * start + 8 * a + 4 * b + 2 * c + d) % len(wheel),
        }
        solution = " " + row["solution"]
        for walk, wordings in family.answers.items():
            assert any(wording + corpus.spaced(wheel[ends[walk]]) in solution for wording in wordings), row


def test_texts_are_distinct_and_every_family_is_present(rows: list[dict[str, str]]) -> None:
    assert len({row["problem"] + row["solution"] for row in rows}) == len(rows)
    for split in ("train", "validation"):
        assert {row["family"] for row in rows if row["split"] == split} == set(corpus.FAMILIES)


def test_wordings_tell_the_walks_apart() -> None:
    """No wording of one walk is the beginning of a wording of the other: the text decides what comes next."""
    for family in corpus.FAMILIES.values():
        first, second = family.answers.values()
        assert not any(one.startswith(other) or other.startswith(one) for one in first for other in second)
