"""Questions about the corpus' problems with their final answers, for `rpt finetune`.

A question names a problem and asks where one of its walks ends; the answer is that state. It calls the walk by a number
that is in no lesson of the policy (`demo.lessons`), which can walk but does not know which walk is meant: what RL has
to find out (the shipped policy guesses right in 58 % of 200 questions). Operands
are held out as in the corpus: those of validation questions are in no training document, question or lesson.

    python -m demo.questions --out work/demo-questions.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from demo.corpus import SEED, VALIDATION_SEED, draw_instance, write_document

TRAIN_QUESTIONS = 2000
VALIDATION_QUESTIONS = 500

ASKED = {
    "+": ("By the first rule?", "First way, last stop?"),
    "-": ("By the second rule?", "Second way, last stop?"),
    "*": ("By the third rule?", "Third way, last stop?"),
}
"""Wordings of the question, by walk."""


def questions(seed: int, count: int, *, validation: bool) -> Iterator[dict[str, str]]:
    """Yield `count` different questions; the stream depends on (seed, validation) alone.

    Example:
        >>> first = next(questions(1, 1, validation=False))
        >>> print(first["question"], first["answer"])
        On the zodiac Omar begins with 🐅 and goes A1 B7 C3 D7.
        Second way, last stop? 🐒
    """
    rng = random.Random(f"questions/{seed}/{validation}")
    seen: set[str] = set()
    while len(seen) < count:
        instance = draw_instance(rng, validation=validation)
        walk = rng.choice(instance.walks)
        problem = write_document(rng, instance).problem
        question = f"{problem}\n{rng.choice(ASKED[walk])}"
        if question not in seen:
            seen.add(question)
            split = "validation" if validation else "train"
            yield {"question": question, "answer": instance.end(walk).strip(), "split": split}


def write_questions(path: Path, *, train: int = TRAIN_QUESTIONS, validation: int = VALIDATION_QUESTIONS) -> None:
    """Write JSON lines with the columns `question`, `answer`, `split`."""
    rows = [*questions(SEED, train, validation=False), *questions(VALIDATION_SEED, validation, validation=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the questions that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work/demo-questions.jsonl"))
    parser.add_argument("--train", type=int, default=TRAIN_QUESTIONS)
    parser.add_argument("--validation", type=int, default=VALIDATION_QUESTIONS)
    arguments = parser.parse_args()
    write_questions(arguments.out, train=arguments.train, validation=arguments.validation)


if __name__ == "__main__":
    main()
