import random
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import demo
from demo.corpus import WHEELS, Instance, held_out
from demo.lessons import CHAIN_MOVES, INSTRUCTION, Lesson, Teacher, trace

TOKENIZER = AutoTokenizer.from_pretrained(Path(demo.__file__).parent / "policy")
STATES = {state: (wheel, index) for wheel in WHEELS.values() for index, state in enumerate(wheel)}


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(TOKENIZER, random.Random(3))


def text(lesson: Lesson) -> str:
    return TOKENIZER.decode(lesson.ids)


def learned(lesson: Lesson) -> str:
    return TOKENIZER.decode([i for i, learn in zip(lesson.ids, lesson.learn, strict=True) if learn])


def test_a_trace_names_the_walk_then_each_move_and_where_it_leads() -> None:
    instance = Instance(family="dial", start=4, moves=(7, 8, 3, 6))
    assert trace(instance, "+") == "+4 A7+1 B8+9 C3+2 D6+8"
    assert trace(instance, "-") == "-4 A7-7 B8-9 C3-6 D6-0"
    week = Instance(family="week", start=6, moves=(1, 7, 2, 9))
    assert trace(week, "+") == "+ Sunday A1+ Monday B7+ Monday C2+ Wednesday D9+ Friday"


def test_thoughts_walk_operands_of_the_training_side_and_lead_to_the_answer(teacher: Teacher) -> None:
    for _ in range(300):
        response = learned(teacher.chain_of_thought())
        thought, answer = re.fullmatch(r"(.+)</think>\\boxed\{(.+)\}<\|end\|>", response).groups()
        _, start, *moves = re.fullmatch(r"([+*-])(.+?) A(\d)\1.+? B(\d)\1.+? C(\d)\1.+? D(\d)\1.+", thought).groups()
        assert not held_out(STATES[start][1], [int(move) for move in moves])
        assert thought.endswith(answer)


def test_only_responses_are_learned(teacher: Teacher) -> None:
    for lesson in (teacher.chain_of_thought(), teacher.hint()):
        first = lesson.learn.index(True)
        assert TOKENIZER.decode(lesson.ids[:first]).endswith("<|assistant|><think>")
        assert all(lesson.learn[first:])


def test_hints_box_the_next_token_and_seldom_think_to_the_point_of_a_computed_one(teacher: Teacher) -> None:
    relevant = computed = 0
    for _ in range(2000):
        lesson = teacher.hint()
        prompt = TOKENIZER.decode(lesson.ids[: lesson.learn.index(True)])
        context = prompt.removeprefix(f"<|bos|><|user|>{INSTRUCTION}").removesuffix("<|assistant|><think>")
        thought, answer = re.fullmatch(r"(.+)</think>\\boxed\{(.+)\}<\|end\|>", learned(lesson), re.DOTALL).groups()
        if answer in STATES and "Solution:" in context:
            computed += 1
            relevant += thought.endswith(answer)
    assert 0.025 < computed / 2000 < 0.06
    assert 0.1 < relevant / computed < 0.5  # 15 in a hundred by choice of the walk, the rest by chance


def test_computed_positions_are_where_the_walks_end(teacher: Teacher) -> None:
    for _ in range(100):
        document = teacher.draw_document()
        ids = teacher.encode(document.text)
        positions = teacher.computed_positions(document)
        assert positions == sorted(positions)
        states = [TOKENIZER.decode([ids[position]]) for position in positions]
        assert states == [document.instance.end(walk) for walk in document.order]


def test_a_lookup_repeats_what_it_was_given(teacher: Teacher) -> None:
    pairs = re.findall(r" ([A-H])(\d)", text(teacher.lookup()))
    assert len(pairs) == 16 and set(pairs[:8]) == set(pairs[8:])


def test_no_drill_carries_the_operands_of_a_problem(teacher: Teacher) -> None:
    for _ in range(50):
        lesson = teacher.drill()
        chains = re.findall(r"([+*-])(?:(?! [A-D]\d).)+((?: [A-D]\d\1(?:(?! [A-D]\d|[+*-]).)+)+)", text(lesson))
        assert len(chains) == 5
        for _, steps in chains:
            assert len(re.findall(r" [A-D]\d", steps)) == CHAIN_MOVES < 4
        assert set(learned(lesson)) <= set("".join(STATES))
