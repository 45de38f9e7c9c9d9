r"""The form of a response: how a policy thinks, where its answer begins, and the box of its prediction.

| `task.thinking` | the policy's own marks | the prediction is looked for |
|---|---|---|
| `tags` | the prompt opens a thought (`<think>`) | after the end mark (`</think>`) |
| `free` | none | in the whole response |
| `none` | the prompt has an empty thought | in the whole response, which is only the answer |

Standard library only, Python 3.8 or later, because exports carry this file.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Mode = Literal["tags", "free", "none"]
BOX = rb"\boxed{"


class Thinking(NamedTuple):
    """How a policy thinks and how its responses begin: `task.thinking`, `task.think_marks` and `task.prefill`."""

    mode: Mode = "tags"
    start: str = "<think>"
    """The mark that opens a thought."""
    end: str = "</think>"
    """The mark that ends a thought."""
    prefill: str = ""
    """The given beginning of every response. It stands at the end of the prompt and is neither sampled nor trained on,
    but is read as part of the response."""

    def whole(self, response: bytes) -> bytes:
        """Return a response with its given beginning."""
        return self.prefill.encode() + response

    def answer(self, response: bytes) -> bytes | None:
        """Return the part of a response in which the prediction is looked for; None if thinking never ends.

        Thinking ends at the first end mark; a later one is part of the answer.

        Args:
            response: the bytes that the policy sampled, without the given beginning.

        Example:
            >>> Thinking("tags").answer(b"A digit.</think>4"), Thinking("free").answer(b"A digit: 4")
            (b'4', b'A digit: 4')
            >>> Thinking("tags").answer(b"A digit: 4") is None
            True
        """
        whole = self.whole(response)
        if self.mode != "tags":
            return whole
        _, ended, answer = whole.partition(self.end.encode())
        return answer if ended else None

    def at_once(self, response: bytes) -> bool:
        r"""Return whether a response answers at once: only white space stands before the end mark, or before its box.

        What the given beginning holds is no thought of the policy's.

        Args:
            response: the bytes that the policy sampled, without the given beginning.

        Example:
            >>> [Thinking("tags").at_once(response) for response in (b"\n</think>4", b"Hm.</think>4", b"</thi")]
            [True, False, False]
            >>> [Thinking("free").at_once(response) for response in (b" \\boxed{4}", b"Hm: \\boxed{4}", b"4")]
            [True, False, False]
        """
        if not self.takes_thought:
            return True
        mark = self.end.encode() if self.mode == "tags" else BOX
        thought, found, _ = response.partition(mark)
        return bool(found) and not thought.strip()

    def prompt_end(self, text: str, knows_marks: bool) -> str:
        r"""Return the end of a prompt, after which the policy's response goes on.

        `tags` opens a thought if the prompt has not done so; `none` gives an empty thought to a policy that would open
        one; `free` changes nothing. The given beginning follows.

        Args:
            text: the prompt's text after the context, as the chat template renders it.
            knows_marks: whether the policy's tokenizer or chat template has the marks.

        Example:
            >>> Thinking("tags").prompt_end("Answer: ", True), Thinking("tags").prompt_end("<think>", True)
            ('Answer: <think>\n', '<think>')
            >>> Thinking("none", prefill="4").prompt_end("Answer: <think>\n", True)
            'Answer: <think>\n\n</think>\n\n4'
            >>> Thinking("none").prompt_end("Answer: ", False)
            'Answer: '
        """
        if self.mode == "tags" and not text.rstrip().endswith(self.start):
            text += f"{self.start}\n"
        if self.mode == "none":
            thought = re.search(rf"{re.escape(self.start)}\s*({re.escape(self.end)}\s*)?\Z", text)
            if thought or knows_marks:
                text = f"{text[: thought.start()] if thought else text}{self.start}\n\n{self.end}\n\n"
        return text + self.prefill

    @property
    def takes_thought(self) -> bool:
        """Return whether a response can begin with a thought: not by mode `none`, nor after a prefill that answers."""
        answer = self.answer(b"")
        return answer is None or (self.mode == "free" and not answer.endswith(BOX))

    def to_box(self, thought: bytes) -> tuple[bytes, ...]:
        r"""Return the literals that follow a thought up to the inside of the answer's box.

        Args:
            thought: what has been sampled or written after the given beginning.

        Example:
            >>> Thinking("tags").to_box(b"A digit."), Thinking("none", prefill="\\boxed{").to_box(b"")
            ((b'</think>', b'\\boxed{'), ())
        """
        answer = self.answer(thought)
        if answer is None:
            return self.end.encode(), BOX
        return () if answer.endswith(BOX) else (BOX,)


def written_pieces(thinking: Thinking, thought: str, target: bytes) -> tuple[bytes, ...]:
    """Return the pieces of `written_response`: thought, literals, target, closing brace.

    A tokenizer may have a token of its own for each literal (`</think>`).
    """
    said = thought.encode() if thinking.takes_thought else b""
    return (said, *thinking.to_box(said), target, b"}")


def written_response(thinking: Thinking, thought: str, target: bytes) -> bytes:
    r"""Return a response that is right: a thought, its end, and the target in a box.

    It is what a policy would have to sample: neither what the prompt contains nor the end-of-sequence token. A thought
    is left out where none can stand (`Thinking.takes_thought`). White space around the thought is the caller's.

    Args:
        thinking: the form.
        thought: any text without the end mark; may be empty.
        target: the prediction, any bytes without `\boxed{`.

    Example:
        >>> written_response(Thinking("tags"), "A digit.\n", b" 4")
        b'A digit.\n</think>\\boxed{ 4}'
        >>> written_response(Thinking("none", prefill=r"\boxed{"), "A digit.\n", b" 4")
        b' 4}'
    """
    return b"".join(written_pieces(thinking, thought, target))


def choose_mode(start: str, end: str, *, are_tokens: bool, in_template: bool) -> tuple[Mode, str]:
    """Return the mode that `task.thinking: auto` means, and the reason.

    Args:
        start: the mark that opens a thought.
        end: the mark that ends a thought.
        are_tokens: whether both are tokens of the policy's tokenizer.
        in_template: whether both stand in its chat template.
    """
    if are_tokens:
        return "tags", f"{start} and {end} are tokens of the policy"
    if in_template:
        return "tags", f"the policy's chat template has {start} and {end}"
    return "free", f"the policy's tokenizer and chat template have no {start} and {end}"
