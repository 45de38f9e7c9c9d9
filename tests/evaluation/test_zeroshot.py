"""Benchmarks' questions: what is read, how a response is judged, and the figures against chance."""

import json
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.evaluation.zeroshot import (
    BENCHMARKS,
    Question,
    letter_of,
    lm_eval_task,
    read_questions,
    summarize_zeroshot,
)

ROWS = [
    {"question": "1 + 1?", "options": ["1", "2"], "answer": "B", "category": "math"},
    {"question": "Which?\u0085 ", "options": [" a", "b ", "c", "d"], "answer": "D", "category": "law"},
    {"question": "no such letter", "options": ["1", "2"], "answer": "C", "category": "math"},
    {"question": "no options", "options": [], "answer": "A", "category": "math"},
    {"question": "2 + 2?", "options": ["4", "2"], "answer": "A", "category": "math"},
]


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


def test_questions_that_can_be_asked(source):
    questions, unusable = read_questions(BENCHMARKS["mmlu-pro"], source, None, seed=0)
    assert [(q.answer, q.category, len(q.options)) for q in questions] == [
        (1, "math", 2),
        (3, "law", 4),
        (0, "math", 2),
    ]
    assert unusable == 2
    assert questions[1].prompt == "Question: Which?\nOptions:\nA. a\nB. b\nC. c\nD. d"
    one, _ = read_questions(BENCHMARKS["mmlu-pro"], source, 1, seed=0)
    two, _ = read_questions(BENCHMARKS["mmlu-pro"], source, 2, seed=0)
    assert set(one) < set(two) < set(questions)


def test_columns_of_the_other_benchmark(tmp_path):
    path = tmp_path / "gpqa.jsonl"
    row = {"question": "q", "options": ["x", "y", "z"], "answer": "y", "answer_letter": "B", "discipline": "Law"}
    path.write_text(json.dumps(row) + "\n")
    (question,), _ = read_questions(BENCHMARKS["supergpqa"], str(path), None, seed=0)
    assert (question.answer, question.category) == (1, "Law")
    with pytest.raises(UserError, match="no usable question"):
        read_questions(BENCHMARKS["mmlu-pro"], str(path), None, seed=0)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("</think>\\boxed{C}", "C"),
        ("\\boxed{A}, no: \\boxed{(J)}.", "J"),
        ("\\boxed{\\text{B}}", "B"),
        ("The answer is (D), not A", "D"),
        ("the answer is C. \\boxed{A}", "A"),
        ("\\boxed{Apples}", None),
        ("A", None),
        ("", None),
    ],
)
def test_the_letter_a_response_settles_on(response, letter):
    assert letter_of(response) == letter


def test_tasks_of_both_modes(source):
    questions, _ = read_questions(BENCHMARKS["mmlu-pro"], source, None, seed=0)
    doc = {"prompt": questions[0].prompt, "options": ["1", "2"], "answer": 1}
    direct = lm_eval_task("t", questions, "direct", 40)
    assert direct["doc_to_choice"](doc) == [" A", " B"] and direct["doc_to_target"](doc) == 1
    reasoning = lm_eval_task("t", questions, "reasoning", 40)
    assert reasoning["process_results"](doc, ["so \\boxed{B}"]) == {"exact_match": 1.0}
    assert reasoning["process_results"](doc, ["so \\boxed{A}"]) == {"exact_match": 0.0}
    assert reasoning["generation_kwargs"]["max_gen_toks"] == 40 and r"\boxed{}" in reasoning["doc_to_text"](doc)


def test_figures_against_chance():
    questions = [Question("q", ("x",) * n, 0, c) for n, c in [(2, "a")] * 20 + [(4, "b")] * 20]
    found = summarize_zeroshot(questions, [True] * 20 + [True] * 5 + [False] * 15, [True] * 39 + [False])
    assert (found["accuracy"]["value"], found["chance"], found["answered"]) == (25 / 40, 3 / 8, 39 / 40)
    assert found["above_chance"] and found["categories"]["a"]["above_chance"]
    assert found["categories"]["b"]["chance"] == 1 / 4 and not found["categories"]["b"]["above_chance"]


def test_real_questions(real_data: Path):
    questions, unusable = read_questions(
        BENCHMARKS["mmlu-pro"], str(real_data / "mmlu-pro" / "mmlu_pro_test.jsonl"), None, seed=0
    )
    assert len(questions) + unusable == 12_032 and unusable < 5
    assert len({question.category for question in questions}) == 14


def test_lm_eval_scores_a_policy(source, repository, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    from stages.zeroshot import zeroshot

    for mode in ("direct", "reasoning"):
        found = zeroshot(
            str(repository / "demo" / "policy"), benchmark="mmlu-pro", source=source, mode=mode, questions=None,
            max_new_tokens=8, seed=0, out=tmp_path,
        )  # fmt: skip
        assert found["questions"] == 3 and found["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3)
        lines = (tmp_path / f"mmlu-pro-{mode}.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["hit"] for line in lines) == round(3 * found["accuracy"]["value"])
