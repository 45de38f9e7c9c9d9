"""Written responses as ids: marks are the policy's own tokens, and what is written is read again by any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.written import ResponseWriter
from pipeline.task.extraction import extract_prediction
from pipeline.task.reward import response_bytes
from pipeline.task.thinking import Thinking, written_response
from tests.shards.tokenizers import tokenizer_of
from tests.toys import byte_level_tokenizer

FORMS = [
    Thinking("tags"),
    Thinking("tags", "[T]", "[/T]"),
    Thinking("free"),
    Thinking("none"),
    Thinking("none", prefill="\\boxed{"),
]
TARGETS = [b" 4", b"}", b"\\", b"\n\n", b" ", "数".encode(), b"\xe6\x95", b"a longer one"]


def sentencepiece() -> CorpusTokenizer:
    """It puts a space before every text, as Llama 2 does, and falls back to bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc}4", "▁4", "▁}"]
    merges = [("▁", "4"), ("▁", "}")]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return CorpusTokenizer(json.loads(tokenizer.to_str()))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_written_is_read_again(form: Thinking, tmp_path: Path) -> None:
    byte_level = CorpusTokenizer.load(byte_level_tokenizer(tmp_path, ["a longer one"] * 9))
    for tokens in (byte_level, tokenizer_of([(b" ", b"4")]), sentencepiece()):
        writer = ResponseWriter(tokens, form, end=7)
        for target in TARGETS:
            *ids, end = writer.ids("A thought.\n", target)
            assert end == 7
            said = response_bytes(ids, tokens.token_bytes)
            assert extract_prediction(said, form) == target
            if not tokens.prepends_space:
                assert said == written_response(form, "A thought.\n", target)


def test_marks_and_targets_are_tokens_of_their_own(tmp_path: Path) -> None:
    tokens = CorpusTokenizer.load(byte_level_tokenizer(tmp_path, ["a longer one"] * 9))
    target = next(content for content in tokens.token_bytes if content == b" longer")
    ids = ResponseWriter(tokens, Thinking("tags"), end=0).ids("one", target)
    expected = [*tokens.encode("one").tolist(), tokens.id_of("</think>"), *tokens.encode("\\boxed{").tolist()]
    assert ids == [*expected, tokens.token_bytes.index(b" longer"), tokens.id_of("}"), 0]


def test_bytes_that_the_policy_cannot_say_are_refused() -> None:
    writer = ResponseWriter(tokenizer_of([], missing=b"7"), Thinking("none"), end=0)
    with pytest.raises(UserError, match=r"no tokens to write b'47'.*none for the byte b'7'"):
        writer.ids("", b"47")
