"""The lessons of the base policy: documents, chain of thought, a hint of the RPT format, and arithmetic drills.

The policy has to be what a reasoning model is to RPT: able to think, in *another* format than the one it will be
trained for, and poor at next-token reasoning. So:

- `document`: plain text, every token a target. This is what direct (arg-max) accuracy comes from.
- `chain_of_thought`: a user gives a problem and *asks a question*; the assistant walks the wheel move by move,
  "+4 A7+1 B8+9 C3+2 D6+8", and boxes the answer. Layouts vary, or the skill is tied to one layout.
- `hint`: the user asks to complete a text; the assistant walks either of the document's two walks, whichever the text
  is about, and boxes the next token, which is a computed one in one case of six. It shows the format and that one
  thinks in it; which thought helps, and that it helps, is for reinforcement learning to find out. Without any hint at
  a computed token the policy never boxes a state and RL has no signal; with empty thoughts it learns to guess.
- `drill`: steps of the walks by heart, in chains of three moves. A problem has four, so no drill carries the operands
  of a problem.

All lessons use operands that `corpus.held_out` leaves to training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from demo.corpus import FAMILIES, LABELS, WALKS, WHEELS, Document, Instance, draw_instance, write_document
from demo.tokenizer import ASSISTANT, BOS, END, END_THINK, THINK, USER

INSTRUCTION = "Complete the text: "
"""The prompt template `brief` of `pipeline.task.templates` up to its slot."""

CHAIN_MOVES = 3
"""Moves of a drill's chain: fewer than a problem has."""
HINT_COMPUTED, HINT_SOLUTION, HINT_RELEVANT = 0.04, 0.85, 0.15
"""Share of hints at a computed token; of the others, share inside the solution; share that think of the right walk."""
SHORT = 12
"""Texts up to this many characters recur (states, labelled moves); their token ids are remembered."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Token ids of one sequence; loss falls on `ids[i]` where `learn[i]`."""

    ids: list[int]
    learn: list[bool]


def trace(instance: Instance, walk: str) -> str:
    """Return the thought that walks the wheel: symbol, start, then label, move and state for each move."""
    wheel = instance.wheel
    steps = zip(LABELS, instance.moves, instance.states(walk), strict=True)
    symbol = WALKS[walk].symbol
    return symbol + wheel[instance.start] + "".join(f" {a}{m}{symbol}{wheel[s]}" for a, m, s in steps)


class Teacher:
    """Draws lessons; all randomness comes from `rng`, so that a seed fixes the whole course."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        marks = (BOS, END, USER, ASSISTANT, THINK, END_THINK)
        bos, end, user, assistant, think, end_think = (tokenizer.get_vocab()[mark] for mark in marks)
        self.bos, self.end, self.end_think = bos, end, end_think
        self.user, self.assistant = [bos, user], [assistant, think]
        self.short: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; those of short texts are cached."""
        if len(text) > SHORT:
            return self.tokenizer.encode(text, add_special_tokens=False)
        if text not in self.short:
            self.short[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.short[text]

    def draw_document(self) -> Document:
        """Draw a training document."""
        return write_document(self.rng, draw_instance(self.rng, validation=False))

    def answered(self, prompt: list[int], thought: str, answer: list[int]) -> Lesson:
        """Return a lesson of a user's prompt and the assistant's response; only the response is learned."""
        box, close = self.encode("\\boxed{"), self.encode("}")
        question = [*self.user, *prompt, *self.assistant]
        response = [*self.encode(thought), self.end_think, *box, *answer, *close, self.end]
        return Lesson(ids=question + response, learn=[False] * len(question) + [True] * len(response))

    def document(self) -> Lesson:
        """Draw a plain document, all of whose tokens are learned."""
        ids = [self.bos, *self.encode(self.draw_document().text), self.end]
        return Lesson(ids=ids, learn=[True] * len(ids))

    def chain_of_thought(self) -> Lesson:
        """Draw a question about a problem, with the walk and the boxed answer."""
        document = self.draw_document()
        instance = document.instance
        walk = self.rng.choice(instance.walks)
        question = self.rng.choice(FAMILIES[instance.family].questions[walk])
        layout = self.rng.random()
        if layout < 0.25:
            prompt = self.encode(f"{question}\n{document.problem}")
        elif layout < 0.5:
            prompt = self.encode(f"{document.problem}\n{question}")
        else:  # a piece of the document, cut anywhere in its solution, before or after the question
            ids = self.encode(document.text)
            first = len(self.encode(f"Problem: {document.problem}\nSolution:"))
            piece = ids[: self.rng.randrange(first, len(ids))]
            asked = self.encode(f"{question}\n") + piece
            prompt = asked if layout < 0.75 else piece + self.encode(f"\n{question}")
        answer = self.encode(instance.end(walk))
        return self.answered(prompt, trace(instance, walk), answer)

    def hint(self) -> Lesson:
        """Draw a text to complete, with a walk and the boxed next token."""
        document = self.draw_document()
        ids = self.encode(document.text)
        ends = self.computed_positions(document)
        if self.rng.random() < HINT_COMPUTED:
            position = self.rng.choice(ends)
        else:
            first = len(self.encode(f"Problem: {document.problem}\nSolution:"))
            start = first if self.rng.random() < HINT_SOLUTION else 1
            position = self.rng.choice([i for i in range(start, len(ids)) if i not in ends])
        stated = sum(end < position for end in ends)
        relevant, *others = document.order[min(stated, 1) :] + document.order[: min(stated, 1)]
        walk = relevant if self.rng.random() < HINT_RELEVANT else self.rng.choice(others)
        prompt = self.encode(INSTRUCTION) + ids[:position]
        return self.answered(prompt, trace(document.instance, walk), [ids[position]])

    def computed_positions(self, document: Document) -> list[int]:
        """Return the positions of the walks' ends in the document's tokens."""
        instance, text, positions = document.instance, document.text, []
        for walk in document.order:
            clause = next(
                c for w in FAMILIES[instance.family].answers[walk] if (c := w + instance.result(walk)) in text
            )
            before = text[: text.index(clause) + len(clause)].removesuffix(instance.end(walk))
            positions.append(len(self.encode(before)))
        return positions

    def drill(self, chains: int = 5) -> Lesson:
        """Draw chains of single moves, whose results are learned."""
        ids, learn = [self.bos], [False]
        for _ in range(chains):
            family = FAMILIES[self.rng.choice(list(FAMILIES))]
            wheel = WHEELS[family.wheel]
            walk = WALKS[self.rng.choice(list(family.answers))]
            state = self.rng.randrange(len(wheel))
            piece = self.encode(walk.symbol + wheel[state])
            ids += piece
            learn += [False] * len(piece)
            for _ in range(CHAIN_MOVES):
                move = self.rng.randrange(1, 10)
                state = walk.step(state, move) % len(wheel)
                given, result = self.encode(f" {self.rng.choice(LABELS)}{move}{walk.symbol}"), self.encode(wheel[state])
                ids += given + result
                learn += [False] * len(given) + [True] * len(result)
        return Lesson(ids=ids, learn=learn)

    def lookup(self, items: int = 8) -> Lesson:
        """Draw labelled digits twice, in different orders: the second time, the digit follows from its label."""
        labels = self.rng.sample("ABCDEFGH", items)
        moves = {label: self.rng.randrange(1, 10) for label in labels}
        ids = [self.bos]
        for label in labels:
            ids += self.encode(f" {label}{moves[label]}")
        learn = [False] * len(ids)
        self.rng.shuffle(labels)
        for label in labels:
            piece = self.encode(f" {label}{moves[label]}")
            ids += piece
            learn += [False] * (len(piece) - 1) + [True]
        return Lesson(ids=ids, learn=learn)
