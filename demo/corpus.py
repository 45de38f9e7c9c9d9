"""A corpus of short problems with solutions, generated so that we know which of its tokens can be reasoned out.

A document walks around a *wheel* (digits, weekdays, moon phases, heavenly stems, ...): it names a start and four
labelled moves, and its solution states where two walks end. So its tokens are of three kinds, and we know which is
which: *computed* (the ends of the walks), *template* (what one wording shares) and *random* (names, operands, wording).

Operands are held out, not only texts: `held_out(operands)` decides by a hash of (start, moves) alone, whatever the
family, whether they may be seen in training. Validation documents use held-out operands only; training documents,
and everything that `demo.lessons` makes for the base models, never do.

Output: JSON lines with the columns `problem`, `solution`, `family`, `split`, gzipped.

    python -m demo.corpus --out demo/corpus.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TEMPLATE = "Problem: {problem}\nSolution: {solution}"
"""The template of a document's text; `data_manifests/demo.yaml` has the same."""

SEED = 1
VALIDATION_SEED = 2506_08007
"""Drawn for the shipped corpus alone: every choice of design was made on other validation documents."""
TRAIN_DOCUMENTS = 5000
VALIDATION_DOCUMENTS = 1000

LABELS = "ABCD"
HELD_OUT_SHARE = 8
"""One operand tuple in this many belongs to validation."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A way of going around a wheel."""

    symbol: str
    """Its name in a chain of thought."""

    step: Callable[[int, int], int]
    """(state, move) -> state, before the wheel's modulus."""


WALKS = {
    "+": Walk(symbol="+", step=lambda state, move: state + move),
    "-": Walk(symbol="-", step=lambda state, move: state - move),
    "*": Walk(symbol="*", step=lambda state, move: 2 * state + move),
}

DIGITS = tuple("0123456789")
WHEELS: dict[str, tuple[str, ...]] = {
    "digits": DIGITS,
    "colours": (" red", " orange", " yellow", " green", " blue", " violet"),
    "weekdays": (" Monday", " Tuesday", " Wednesday", " Thursday", " Friday", " Saturday", " Sunday"),
    "moons": (" 🌑", " 🌒", " 🌓", " 🌔", " 🌕", " 🌖", " 🌗", " 🌘"),
    "stems": (" 甲", " 乙", " 丙", " 丁", " 戊", " 己", " 庚", " 辛", " 壬", " 癸"),
    "animals": (" 🐀", " 🐂", " 🐅", " 🐇", " 🐉", " 🐍", " 🐎", " 🐐", " 🐒", " 🐓", " 🐕", " 🐖"),
    "días": (" lunes", " martes", " miércoles", " jueves", " viernes", " sábado", " domingo"),
}
"""The states in their order. A word carries its leading space: it is one token. A digit follows a space token."""

PEOPLE = (
    "Ana", "Zoë", "José", "Søren", "Łukasz", "Élodie", "Jürgen", "Ольга", "Νίκος", "李明", "美咲", "지민", "Aïcha",
    "Tom", "Mia", "Omar", "Ravi", "Ingrid", "Kofi", "Leila", "王芳", "さくら", "Ben", "Ida",
)  # fmt: skip
CHECKED_SHARE = 0.2
"""Solutions that end with the name of whoever checked them: a token nobody can reason out."""
WORDING_WEIGHTS = (0.7, 0.3)
"""Weights of the first and the second wording of a clause."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of problem: its wheel, the wordings of its problem, and what can be asked about it."""

    wheel: str
    frames: tuple[str, ...]
    """Wordings of the problem; slots {who}, {start}, {moves}. {start} brings its own space."""

    answers: dict[str, tuple[str, ...]]
    """Wordings of the clause of the solution that ends with its result, by walk."""

    questions: dict[str, tuple[str, ...]]
    """Wordings of a question by walk, used only to teach the base policy (`demo.lessons`)."""


FAMILIES: dict[str, Family] = {
    "dial": Family(
        wheel="digits",
        frames=(
            "A dial shows{start}. {who} turns it by {moves}.",
            "{who} has a lock whose dial stands at{start} and turns it {moves}.",
            "The dial of {who}'s safe points to{start}; it is moved by {moves}.",
        ),
        answers={
            "+": (" it stops at", " the dial ends on"),
            "-": (" in reverse it would reach", " turned the other way it shows"),
        },
        questions={
            "+": ("Where does the dial stop?", "After all forward turns, what does it show?"),
            "-": ("Where would the dial stop in reverse?", "After all backward turns, what does it show?"),
        },
    ),
    "counter": Family(
        wheel="digits",
        frames=(
            "A counter begins at{start}. {who} feeds it {moves}.",
            "{who}'s counter reads{start} and is given {moves}.",
            "Into a counter that reads{start}, {who} types {moves}.",
        ),
        answers={
            "*": (" doubling before each it reads", " with doubling the last digit is"),
            "+": (" plainly added it reads", " with adding the last digit is"),
        },
        questions={
            "*": ("What does the counter read if it doubles before it adds?", "Doubling each time, what is the end?"),
            "+": ("What does the counter read if it only adds?", "Adding each time, what is the end?"),
        },
    ),
    "till": Family(
        wheel="digits",
        frames=(
            "{who}'s till ends in{start}. The slips say {moves}.",
            "The last digit of {who}'s purse is{start}; the bills are {moves}.",
            "An account of {who} ends in{start}, and the entries are {moves}.",
        ),
        answers={
            "+": (" if all is paid in it ends in", " taken as income the last digit is"),
            "-": (" if all is paid out it ends in", " taken as costs the last digit is"),
        },
        questions={
            "+": ("All slips are income: what is the last digit?", "What does it end in when all is paid in?"),
            "-": ("All slips are costs: what is the last digit?", "What does it end in when all is paid out?"),
        },
    ),
    "machine": Family(
        wheel="digits",
        frames=(
            "{who}'s machine holds{start} and reads the tape {moves}.",
            "A tape {moves} runs through {who}'s machine, which holds{start}.",
            "With{start} in its memory, a machine of {who} takes {moves}.",
        ),
        answers={
            "*": (" in double mode it prints", " the doubling key gives"),
            "-": (" in minus mode it prints", " the minus key gives"),
        },
        questions={
            "*": ("What does double mode print?", "What does the doubling key give?"),
            "-": ("What does minus mode print?", "What does the minus key give?"),
        },
    ),
    "ring": Family(
        wheel="colours",
        frames=(
            "Six colours stand in a ring. {who} is on{start} and walks {moves}.",
            "From{start}, {who} steps {moves} around the colour ring.",
            "{who} plays on the colour ring, sits at{start} and throws {moves}.",
        ),
        answers={
            "+": (" clockwise the colour is", " going right the end is"),
            "-": (" counter to the clock it is", " going left the end is"),
        },
        questions={
            "+": ("Which colour is reached clockwise?", "Going right, which colour is the end?"),
            "-": ("Which colour is reached counter to the clock?", "Going left, which colour is the end?"),
        },
    ),
    "week": Family(
        wheel="weekdays",
        frames=(
            "Today is{start}. {who} waits {moves} days.",
            "{who} starts a trip on{start}; its legs take {moves} days.",
            "A note of {who} is dated{start}, the delays are {moves} days.",
        ),
        answers={
            "+": (" counting on, the day is", " later it will be"),
            "-": (" counting back, the day is", " earlier it was"),
        },
        questions={
            "+": ("Which day comes after all of these?", "Counting on, which day is it?"),
            "-": ("Which day was before all of these?", "Counting back, which day is it?"),
        },
    ),
    "moon": Family(
        wheel="moons",
        frames=(
            "{who} sees the moon as{start} and lets {moves} phases pass.",
            "The moon is{start} over {who}'s house; wait {moves} phases.",
            "Tonight{start} shines. {who} counts {moves} phases.",
        ),
        answers={
            "+": (" the future moon is", " forward the sky shows"),
            "-": (" the past moon is", " backward the sky showed"),
        },
        questions={
            "+": ("Which moon comes then?", "What will the sky show in the future?"),
            "-": ("Which moon was there then?", "What did the sky show in the past?"),
        },
    ),
    "stem": Family(
        wheel="stems",
        frames=(
            "{who} was born in a year{start}; count {moves} years.",
            "天干: {who} begins at{start} and moves {moves}.",
            "The year of {who} bears{start}. The gaps are {moves} years.",
        ),
        answers={
            "+": (" 后来是", " the younger year has"),
            "-": (" 从前是", " the older year has"),
        },
        questions={
            "+": ("Which stem follows?", "后来?"),
            "-": ("Which stem came before?", "从前?"),
        },
    ),
    "zodiac": Family(
        wheel="animals",
        frames=(
            "{who} was born under{start}; relatives are apart by {moves} years.",
            "On the zodiac {who} begins with{start} and goes {moves}.",
            "In a year of{start} {who} plans {moves} years.",
        ),
        answers={
            "+": (" the child's sign is", " ahead comes"),
            "-": (" the parent's sign is", " behind lies"),
        },
        questions={
            "+": ("Which sign has the child?", "Which sign is ahead?"),
            "-": ("Which sign has the parent?", "Which sign is behind?"),
        },
    ),
    "semana": Family(
        wheel="días",
        frames=(
            "Hoy es{start}. {who} espera {moves} días.",
            "{who} llegó el{start} y contó {moves} días.",
            "El plan de {who} empieza el{start}, con plazos {moves}.",
        ),
        answers={
            "+": (" después será", " el último día es"),
            "-": (" antes fue", " el día de origen es"),
        },
        questions={
            "+": ("¿Qué día será después?", "¿Cuál es el último día?"),
            "-": ("¿Qué día fue antes?", "¿Cuál es el día de origen?"),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The numbers from which the computed tokens of a document follow."""

    family: str
    start: int
    moves: tuple[int, ...]

    @property
    def wheel(self) -> tuple[str, ...]:
        """The states in their order."""
        return WHEELS[FAMILIES[self.family].wheel]

    @property
    def walks(self) -> tuple[str, ...]:
        """The names of the walks that the family uses."""
        return tuple(FAMILIES[self.family].answers)

    def states(self, walk: str) -> list[int]:
        """Return the state of the walk after each move."""
        states, state = [], self.start
        for move in self.moves:
            state = WALKS[walk].step(state, move) % len(self.wheel)
            states.append(state)
        return states

    def end(self, walk: str) -> str:
        """Return the last state of the walk, spelled as on the wheel."""
        return self.wheel[self.states(walk)[-1]]

    def result(self, walk: str) -> str:
        """Return the last state with a leading space, as it follows a word."""
        return spaced(self.end(walk))


@dataclass(frozen=True, kw_only=True)
class Document:
    """A worded instance: a problem and its solution."""

    instance: Instance
    problem: str
    solution: str
    order: tuple[str, ...]
    """The walks in the order in which the solution states them."""

    @property
    def text(self) -> str:
        """The text of the document, as the manifest's template renders it."""
        return TEMPLATE.format(problem=self.problem, solution=self.solution)


def spaced(state: str) -> str:
    """Return the state with exactly one leading space."""
    return state if state.startswith(" ") else " " + state


def held_out(start: int, moves: Sequence[int]) -> bool:
    """Return whether these operands belong to validation, which does not depend on family and wording."""
    key = ",".join(map(str, (start, *moves)))
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def draw_instance(rng: random.Random, *, validation: bool, family: str | None = None) -> Instance:
    """Draw an instance whose operands belong to training, or to validation."""
    family = family or rng.choice(list(FAMILIES))
    size = len(WHEELS[FAMILIES[family].wheel])
    while True:
        start = rng.randrange(size)
        moves = tuple(rng.randrange(1, 10) for _ in LABELS)
        if held_out(start, moves) == validation:
            return Instance(family=family, start=start, moves=moves)


def write_moves(rng: random.Random, moves: Sequence[int]) -> str:
    """Return the labelled moves as text, in one of three wordings."""
    items = [f"{label}{move}" for label, move in zip(LABELS, moves, strict=True)]
    return rng.choice((", ".join(items), ", ".join(items[:-1]) + " and " + items[-1], " ".join(items)))


def write_document(rng: random.Random, instance: Instance) -> Document:
    """Word an instance: a random frame, a random order of the walks, a random wording of each."""
    family = FAMILIES[instance.family]
    problem = rng.choice(family.frames).format(
        who=rng.choice(PEOPLE), start=spaced(instance.wheel[instance.start]), moves=write_moves(rng, instance.moves)
    )
    order = list(family.answers)
    rng.shuffle(order)
    clauses = [rng.choices(family.answers[walk], WORDING_WEIGHTS)[0] + instance.result(walk) for walk in order]
    solution = rng.choice((";", ",")).join(clauses).lstrip() + "."
    if rng.random() < CHECKED_SHARE:
        solution += f" Checked by {rng.choice(PEOPLE)}."
    return Document(instance=instance, problem=problem, solution=solution, order=tuple(order))


def documents(seed: int, count: int, *, validation: bool) -> Iterator[Document]:
    """Yield `count` documents with different texts; the stream depends on (seed, validation) alone."""
    rng = random.Random(f"corpus/{seed}/{validation}")
    seen: set[str] = set()
    while len(seen) < count:
        document = write_document(rng, draw_instance(rng, validation=validation))
        if document.text not in seen:
            seen.add(document.text)
            yield document


def corpus_lines(*, seed: int, validation_seed: int, train: int, validation: int) -> Iterator[str]:
    """Yield the JSON lines of the corpus, training documents first."""
    for split, split_seed, count in (("train", seed, train), ("validation", validation_seed, validation)):
        for document in documents(split_seed, count, validation=split == "validation"):
            row = {
                "problem": document.problem,
                "solution": document.solution,
                "family": document.instance.family,
                "split": split,
            }
            yield json.dumps(row, ensure_ascii=False) + "\n"


def write_corpus(path: Path, *, seed: int, validation_seed: int, train: int, validation: int) -> None:
    """Write the corpus; the same arguments give the same lines (gzip's own bytes depend on the zlib at hand)."""
    text = "".join(corpus_lines(seed=seed, validation_seed=validation_seed, train=train, validation=validation))
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def main() -> None:
    """Write the corpus that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/corpus.jsonl.gz"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--validation-seed", type=int, default=VALIDATION_SEED)
    parser.add_argument("--train", type=int, default=TRAIN_DOCUMENTS)
    parser.add_argument("--validation", type=int, default=VALIDATION_DOCUMENTS)
    args = vars(parser.parse_args())
    write_corpus(args.pop("out"), **args)


if __name__ == "__main__":
    main()
