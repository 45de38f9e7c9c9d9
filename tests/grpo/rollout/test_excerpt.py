from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pipeline.grpo.rollout.excerpt import WIDTH, excerpt, first_cells, last_cells
from pipeline.task.reward import Outcome

WRONG = Outcome(0.0, "longer_than_continuation")


@given(st.binary(max_size=600), st.binary(max_size=300), st.binary(max_size=900), st.binary(max_size=200))
def test_any_bytes_take_at_most_four_lines_without_control_characters(
    context: bytes, after: bytes, response: bytes, continuation: bytes
) -> None:
    check(excerpt(context, after, response, continuation, WRONG))


@given(st.text(max_size=400), st.text(max_size=900))
def test_any_text_does_so_too(context: str, response: str) -> None:
    encoded = [text.encode("utf-8", errors="surrogatepass") for text in (context, response)]
    check(excerpt(encoded[0], encoded[0], encoded[1], encoded[1], WRONG))


def check(lines: list[str]) -> None:
    assert len(lines) <= 4
    for line in lines:
        assert cell_len(line) <= WIDTH and len(line) <= 2 * WIDTH, line
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in line), line


def test_a_long_response_shows_its_beginning_and_its_end() -> None:
    response = b"First, " + b"and so on " * 900 + rb"so \boxed{ 4}"
    _, first, second, truth = excerpt(b"x" * 500, b"<think>\n", response, b" 4 apples", Outcome(1.0, "match"))
    assert first.startswith("response  First, and so on") and second.endswith(r"so \boxed{ 4}")
    assert first.endswith("…") and second.startswith(f"{'':<10}…")
    assert truth == "truth     ␣4␣apples   reward 1, match"


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    lines = excerpt(b"a\x1b[2Jb", b"", b"\r\x07\xe4\n" + "\u202e".encode(), b"\t", Outcome(-0.5, "unfinished"))
    assert lines[0].startswith("prompt    a␛[2Jb ┊ ")
    assert lines[1] == "response  ␍␇⟨E4⟩⏎⟨U+202E⟩"
    assert lines[2] == "truth     ⇥   reward -0.5, unfinished"


def test_the_end_of_a_template_does_not_hide_the_context() -> None:
    (prompt, *_) = excerpt(
        b"the context ends here", b"What is its next token? Reason step by step " * 9, b"", b"", WRONG
    )
    assert "the context ends here ┊ …" in prompt and prompt.endswith("Reason step by step ")


@given(st.text(), st.integers(3, 40))
def test_cuts_fit_and_keep_the_asked_side(text: str, cells: int) -> None:
    first, last = first_cells(text, cells), last_cells(text, cells)
    for cut in (first, last):
        assert cell_len(cut) <= cells
    if first != text:
        assert text.startswith(first[:-1]) and first.endswith("…")
    if last != text:
        assert text.endswith(last[1:]) and last.startswith("…")
