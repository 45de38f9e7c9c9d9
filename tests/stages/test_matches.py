"""Near-duplicates and contamination on real files: who leaves, what is said of it, and that no order decides."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.dedup.near import band_rows, bands
from pipeline.corpus.dedup.words import ngrams, words
from tests.corpus.corpora import Ingested, jsonl, run

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst"]


def prose(rng: random.Random, n: int) -> list[str]:
    return rng.choices(VOCABULARY, k=n)


def jaccard(a: str, b: str, n: int = 5) -> float:
    """The plain twin: sets of tuples."""
    one, two = ({tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1))} for w in (words(text) for text in (a, b)))
    return len(one & two) / len(one | two)


def matches(result: Ingested) -> list[dict[str, Any]]:
    (path,) = result.record.directory.parent.parent.glob("assign/*/matches-*.parquet")
    return pq.read_table(path).to_pylist()


def corpus(seed: int) -> list[dict[str, Any]]:
    """100 documents of 120 words; of each ten, eight were copied with 1 to 12 words replaced."""
    rng = random.Random(seed)
    records = []
    for group in range(10):
        original = prose(rng, 120)
        for edits in (0, 1, 1, 2, 2, 3, 4, 12):
            copy = list(original)
            for at in rng.sample(range(120), edits):
                copy[at] = "other"
            records.append(
                {"text": f"{group}-{len(records)} " + " ".join(copy), "split": rng.choice(["train"] * 3 + ["test"])}
            )
        records += [{"text": " ".join(prose(rng, 120)), "split": "train"} for _ in range(2)]
    return records


def texts_of(result: Ingested, split: str) -> list[str]:
    return [row["text"] for row in result.documents if row["split"] == split]


HELD_OUT = {"column": "split", "value": "test"}


@pytest.mark.parametrize("within_training", [False, True])
def test_the_true_similarity_decides(tmp_path: Path, within_training: bool) -> None:
    records = corpus(0)
    path = jsonl(tmp_path / "x.jsonl", records)
    rule = {"within_training": within_training}
    result = run(tmp_path / "work", path, validation=HELD_OUT, near_duplicates=rule)
    validation, training = texts_of(result, "validation"), texts_of(result, "train")
    assert validation == [r["text"] for r in records if r["split"] == "test"]  # held-out documents always stay
    leaks = {
        r["text"] for r in records if r["split"] == "train" and any(jaccard(r["text"], v) >= 0.8 for v in validation)
    }
    assert leaks and not leaks & set(training)
    counters = result.record.counters
    assert counters["dropped.near_duplicate_of_validation"] == len(leaks)
    others = [r["text"] for r in records if r["split"] == "train" and r["text"] not in leaks]
    if not within_training:
        assert training == others
        assert "dropped.near_duplicate" not in counters
    else:
        thinned = set(others) - set(training)
        assert thinned and counters["dropped.near_duplicate"] == len(thinned)
        assert all(any(jaccard(text, kept) >= 0.8 for kept in training) for text in thinned)
        assert all(jaccard(a, b) < 0.8 for a in training for b in training if a < b)
    for row in matches(result):
        one, other = (json_row["text"] for json_row in (records[row["source_row"]], records[row["matched_row"]]))
        assert row["similarity"] == pytest.approx(jaccard(one, other)) and row["similarity"] >= 0.8
        assert (row["reason"] == "near_duplicate_of_validation") == (records[row["matched_row"]]["split"] == "test")
    assert len(matches(result)) == len(records) - len(result.documents)


def test_who_leaves_depends_on_texts_alone(tmp_path: Path) -> None:
    records = corpus(1)
    shuffled = random.Random(2).sample(records, len(records))
    rule: dict[str, Any] = {"validation": HELD_OUT, "near_duplicates": {"within_training": True}}
    whole = run(tmp_path / "whole", jsonl(tmp_path / "a.jsonl", records), **rule)
    cut = run(tmp_path / "cut", jsonl(tmp_path / "b.jsonl", shuffled), slice_bytes=3000, shard_documents=7, **rule)
    assert sorted(whole.texts) == sorted(cut.texts)
    assert len(list((tmp_path / "cut/near").glob("*/bands-*.parquet"))) > 5


def test_near_duplicates_may_stay(tmp_path: Path) -> None:
    result = run(tmp_path / "work", jsonl(tmp_path / "x.jsonl", corpus(0)), validation=HELD_OUT, near_duplicates=None)
    assert len(result.documents) == 100 and not (tmp_path / "work/near").exists() and matches(result) == []


def test_bands_propose_what_is_at_the_threshold() -> None:
    """Of pairs just above 0.8, practically all share a band key; of unrelated ones none does."""
    rng, rows, found = random.Random(0), band_rows(0.8), 0
    for _ in range(60):
        text = prose(rng, 400)
        copy = list(text)
        for at in range(50, 350, 38):
            copy[at] = "other"
        keys = bands([text, copy, prose(rng, 400)], 5, rows)
        assert 0.8 <= jaccard(" ".join(text), " ".join(copy)) < 0.83
        found += any(keys[0] == keys[1])
        assert not any(keys[0] == keys[2])
    assert found >= 59


def test_words_of_every_script() -> None:
    assert words("Łukasz's  \\frac{x_1}{12}") == ["łukasz", "s", "frac", "x", "1", "12"]
    assert words("数学题,很难。🌖🌒") == ["数", "学", "题", "很", "难", "🌖", "🌒"]
    assert words("กำลังค่ะ ភាសាខ្មែរ។") == ["กํ", "า", "ลั", "ง", "ค่", "ะ", "ភា", "សា", "ខ្", "មែ", "រ"]
    assert len(ngrams(words("一二三四"), 3)) == 2 and len(ngrams(words("two words"), 3)) == 0
    assert len(set(ngrams(words("a b a b b a"), 2).tolist())) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("السَّلَامُ عَلَيْكُمْ", ["السَّلَامُ", "عَلَيْكُمْ"]),
        ("x\u0303 = q\u0307", ["x\u0303", "q\u0307"]),  # no precomposed letters: NFC leaves the marks
        ("ཁོ་བོ", ["ཁོ", "བོ"]),
        ("0ၖ 1", ["0ၖ", "1"]),  # a Burmese vowel sign on a digit: the sign is of a script without spaces, the digit not
    ],
)
def test_a_mark_does_not_cut_a_word(text: str, expected: list[str]) -> None:
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected]


TWINS = [
    ("co\u00adoperate", "cooperate"),
    *((f"wa{mark}ter mark", "water mark") for mark in "\u200b\u200c\u200d\u2060\ufeff\u200e\u034f"),
    ("ﬁne ﬂow", "fine flow"),
    ("ＡＢＣ　１２３", "abc 123"),
    ("x² and ½", "x2 and 1⁄2"),
    ("ｶﾞｷﾞ", "ガギ"),
    ("㍿", "株式会社"),
    ("𝐇𝐞𝐥𝐥𝐨", "hello"),
    ("Straße ΜΆΪΟΣ", "STRASSE μάϊος"),
    ("J̌ e\u034f\u0301", "ǰ é"),
    ("❤️⭐️", "❤⭐"),
    ("“Isn’t it?” — …yes", '"Isn\'t it?" - ...yes'),
    ("isn´t", "isn t"),
]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_texts_that_only_look_different_have_the_same_words(one: str, other: str) -> None:
    assert words(one) == words(other) != []


@given(
    st.text(
        st.sampled_from("aB1_ .é’—…´²ßǰ\u00ad\u200bक\u093f\u094dกั数カー가ᄀ\u0301🌖㍿™")
        | st.characters(codec="utf-8", exclude_categories=["Cn", "Co"])
    )
)
@settings(max_examples=300)
def test_words_are_the_same_whichever_way_a_text_takes(text: str) -> None:
    """The plain twin: one character after the other, by the properties of Unicode alone."""
    assert words(text) == plain_words(text)
    assert words(text.upper()) == words(text.upper().casefold())


def plain_words(text: str) -> list[str]:
    text = "".join(c for c in text if not regex.match(r"\p{Default_Ignorable_Code_Point}", c))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found: list[str] = []
    before = None  # what the character before was: a letter of a word that goes on, a character that stands alone
    for c in text:
        kind = unicodedata.category(c)[0]
        if regex.match(r"[\U0001F000-\U0001FAFF\p{Emoji_Presentation}]", c):
            found.append(c)
            before = None
        elif kind == "M":
            found[-1:] = [found[-1] + c] if before else found[-1:]
        elif kind not in "LN":
            before = None
        elif regex.match(r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Line_Break=SA}]", c):
            found.append(c)
            before = "alone"
        else:
            found[-1:] = [found[-1] + c] if before == "letter" else [*found[-1:], c]
            before = "letter"
    return found


def test_hindi_texts_that_share_few_words_are_not_contaminated(tmp_path: Path) -> None:
    """Cut at every mark, these two share 18 "words" in a row; they share seven."""
    shared = "हिन्दी भाषा में लिखी गयी किताब"
    question = {"text": f"पहला {shared} कहाँ मिलती है और उसका मूल्य कितना है"}
    documents = [{"text": f"दूसरा {shared} मेज पर रखी हुई थी जब वह घर आया"}, {"text": "something else"}]
    jsonl(tmp_path / "eval.jsonl", [question])
    source = jsonl(tmp_path / "x.jsonl", documents)
    result = run(tmp_path / "work", source, decontaminate=[{"source": str(tmp_path / "eval.jsonl")}])
    assert len(result.documents) == 2
    question["text"] = f"{documents[0]['text']} ।"
    jsonl(tmp_path / "eval.jsonl", [question])
    result = run(tmp_path / "work", source, decontaminate=[{"source": str(tmp_path / "eval.jsonl")}])
    assert result.texts == ["something else"]


# ------------------------------------------------------------------------------------------------ contamination

SENTENCE = "how many clips did natalia sell altogether in april and may if she sold"
QUESTIONS = [
    {"q": f"{SENTENCE} 48?"},
    {"q": "Too short."},
    {"q": None},
    {"q": "小明有三个苹果他又买了五个苹果请问他现在有几个苹果"},
]


def texts(n: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    for _ in range(n):
        yield {"text": " ".join(prose(rng, 40)), "split": "train"}


def test_training_documents_that_share_an_ngram_with_an_evaluation_set_leave(tmp_path: Path) -> None:
    jsonl(tmp_path / "eval/test.jsonl", QUESTIONS)
    shared = SENTENCE.upper().replace(" ", ", ")
    records = [
        *texts(3),
        {"text": f"So: {shared}!", "split": "train"},
        {"text": " ".join(SENTENCE.split()[:12]) + " you?", "split": "train"},  # twelve words are not thirteen
        {"text": "题:他又买了五个苹果,请问他现在有多少?", "split": "train"},
        {"text": f"held out: {SENTENCE}", "split": "test"},
    ]
    path = jsonl(tmp_path / "x.jsonl", records)
    options: dict[str, Any] = {
        "validation": HELD_OUT,
        "decontaminate": [{"source": str(tmp_path / "eval"), "text": "{q}"}],
    }
    result = run(tmp_path / "work", path, **options)
    assert result.texts == [r["text"] for i, r in enumerate(records) if i not in (3, 5)]
    assert result.record.counters["dropped.contaminated"] == 2
    english, chinese = matches(result)
    assert (english["source_row"], english["matched_file"], english["matched_row"]) == (3, "test.jsonl", 0)
    assert english["ngram"] == " ".join(SENTENCE.split()[:13]) and english["reason"] == "contaminated"
    assert (chinese["source_row"], chinese["matched_row"], chinese["ngram"]) == (
        5,
        3,
        " ".join("他又买了五个苹果请问他现在"),
    )
    (near,) = (tmp_path / "work/near").glob("*/record.json")
    counters = json.loads(near.read_text())["summary"]["counters"]
    assert {name: n for name, n in counters.items() if "evaluation" in name} == {
        "evaluation.records": 4,
        "evaluation.too_short": 1,
        "evaluation.unusable": 1,
    }


def test_the_content_of_an_evaluation_set_is_part_of_the_identity_and_its_place_is_not(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [*texts(3), {"text": SENTENCE}])

    def decontaminated(folder: str, questions: list[dict[str, Any]]) -> Ingested:
        sets = [{"source": str(jsonl(tmp_path / folder / "t.jsonl", questions)), "text": "{q}"}]
        return run(tmp_path / "work", path, decontaminate=sets)

    first = decontaminated("here", QUESTIONS)
    assert decontaminated("there", QUESTIONS).record.directory == first.record.directory
    other = decontaminated("here", QUESTIONS[1:])
    assert len(other.documents) == len(first.documents) + 1


def test_an_evaluation_set_that_is_not_there_stops_before_anything_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", texts(3))
    for sets in ({"source": str(tmp_path / "no.jsonl")}, {"source": str(path), "text": "{question}"}):
        with pytest.raises(UserError):
            run(tmp_path / "work", path, decontaminate=[sets])
    assert not (tmp_path / "work").exists()
