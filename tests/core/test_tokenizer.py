"""Token bytes: byte-level and SentencePiece-like vocabularies, special tokens in text, real tokenizers."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.config.errors import UserError
from pipeline.core.model_files import count_weights, model_digest
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.core.tokenizer_json import byte_characters
from tests.scoring.models import qwen

TEXT = "The cat sat on the mat. 猫は座った。 <think>no</think> café 🙂\n\n\tx = {1}^{2}"


def byte_level() -> dict[str, Any]:
    """A byte-level BPE as GPT-2's family has it, with added tokens behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    return json.loads(tokenizer.to_str())


def sentencepiece(kind: str, prepend: str) -> dict[str, Any]:
    """A vocabulary with ▁ and byte tokens, as Llama (BPE) and T5 (Unigram) have it."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "c", "a", "t", "▁cat", "at"]
    if kind == "BPE":
        vocab = {piece: i for i, piece in enumerate(pieces)}
        vocab |= {"ca": len(vocab), "cat": len(vocab) + 1}
        merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("a", "t")]
        tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    else:
        scored = [(piece, 0.0 if piece in ("<unk>", "<s>") else -float(i)) for i, piece in enumerate(pieces)]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    if prepend == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return json.loads(tokenizer.to_str())


def test_byte_map_covers_all_bytes_and_is_gpt2s() -> None:
    characters = byte_characters()
    assert sorted(characters.values()) == list(range(256))
    assert [characters[c] for c in "ĠĊ!é"] == [0x20, 0x0A, 0x21, 0xE9]


def test_byte_level_ends_are_bytes_not_characters() -> None:
    tokenizer = CorpusTokenizer(byte_level())
    ids = tokenizer.encode("é猫")
    assert [tokenizer.token_bytes[i] for i in ids] == [b"\xc3\xa9", b"\xe7\x8c\xab"] or len(ids) > 2
    assert tokenizer.ends(ids)[-1] == 5
    assert tokenizer.decode_bytes(ids) == "é猫".encode()


@given(st.text())
def test_byte_level_is_lossless_on_any_text(text: str) -> None:
    tokenizer = BYTE_LEVEL_TOKENIZER
    ids = tokenizer.encode(text)
    ends = tokenizer.ends(ids)
    assert tokenizer.is_lossless(text, ids)
    assert ends.tolist() == np.cumsum([len(tokenizer.token_bytes[i]) for i in ids]).tolist()
    assert (len(ends) == 0 and text == "") or ends[-1] == len(text.encode())


BYTE_LEVEL = byte_level()
BYTE_LEVEL_TOKENIZER = CorpusTokenizer(BYTE_LEVEL)
CODE = "def f(n):\n    if n > 1:\n        return  n * f(n - 1)\n\treturn 1\n" + " " * 30 + "# 猫 🙂 12345\n\n\n"


def neox(tree: dict[str, Any] | None = None) -> dict[str, Any]:
    """A byte-level BPE with runs of 24 to 2 spaces among its added tokens, as GPT-NeoX's, and a mark behind them."""
    tree = tree or byte_level()
    tree["normalizer"] = tree["normalizer"] or {"type": "NFC"}
    first = 1 + max(tree["model"]["vocab"].values())
    contents = [("<s>", True), *((" " * n, False) for n in range(24, 1, -1)), ("\n\n\n", False), ("<think>", False)]
    tree["added_tokens"] = [
        {"id": first + i, "content": content, "special": special, "normalized": not special, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, (content, special) in enumerate(contents)
    ]  # fmt: skip
    return tree


def assert_as_tokenizers_reads_it(tokenizer: CorpusTokenizer, tree: dict[str, Any], text: str) -> None:
    """Ids, and where a token ends with a character, its end in bytes by the characters that `tokenizers` gives."""
    twin = Tokenizer.from_str(json.dumps(tree)).encode(text, add_special_tokens=False)
    ids = tokenizer.encode(text)
    assert ids.tolist() == twin.ids
    assert tokenizer.is_lossless(text, ids)
    ends = tokenizer.ends(ids).tolist()
    of_characters = [len(text[:end].encode()) for _, end in twin.offsets]
    whole = [n for n in range(len(ids)) if n + 1 == len(ids) or twin.offsets[n + 1][0] >= twin.offsets[n][1]]
    assert [ends[n] for n in whole] == [of_characters[n] for n in whole]


NEOX = neox()
NEOX_TOKENIZER = CorpusTokenizer(NEOX)


def test_white_space_among_the_added_tokens_is_parsed_as_the_tokenizer_does() -> None:
    ids = NEOX_TOKENIZER.encode("a     b" + " " * 30 + "c\n\n\n\nd")
    pieces = [NEOX_TOKENIZER.token_bytes[i] for i in ids]
    assert pieces == [b"a", b" " * 5, b"b", b" " * 24, b" " * 6, b"c", b"\n\n\n", b"\n", b"d"]
    assert NEOX_TOKENIZER.ends(ids).tolist() == [1, 6, 7, 31, 37, 38, 41, 42, 43]
    assert_as_tokenizers_reads_it(NEOX_TOKENIZER, NEOX, CODE)


@given(st.text(st.sampled_from(" \n\taé猫1🙂\u3000\r"), max_size=60))
def test_any_white_space_has_the_tokenizers_ids_and_the_texts_bytes(text: str) -> None:
    assert_as_tokenizers_reads_it(NEOX_TOKENIZER, NEOX, text)


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize("prepend", ["normalizer", "always", "first", "never"])
def test_the_dummy_space_after_parsed_white_space_is_no_byte_of_the_text(kind: str, prepend: str) -> None:
    tree = neox(sentencepiece(kind, prepend)) if kind == "BPE" else sentencepiece(kind, prepend)
    if kind == "Unigram":
        tree["added_tokens"].append(
            {"id": len(tree["model"]["vocab"]), "content": "\n\n\n", "special": False, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}
        )  # fmt: skip
    for token in tree["added_tokens"]:
        token["normalized"] = False
    tokenizer = CorpusTokenizer(tree)
    for text in ("cat\n\n\ncat cat", "\n\n\ncat\n\n\n\n\n\nat"):
        assert_as_tokenizers_reads_it(tokenizer, tree, text)


def test_added_spaces_spelled_as_the_vocabulary_spells_them_have_the_bytes_of_spaces() -> None:
    tree = sentencepiece("BPE", "never")
    tree["normalizer"], tree["pre_tokenizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, None
    tree["added_tokens"].append(
        {"id": 900, "content": "▁▁", "special": False, "normalized": True, "single_word": False, "lstrip": False,
         "rstrip": False}
    )  # fmt: skip
    tokenizer = CorpusTokenizer(tree)
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("a  cat")] == [b"a", b"  ", b"cat"]


def test_added_tokens_keep_the_numbers_that_tokenizers_gives_them() -> None:
    """`tokenizers` numbers what the vocabulary lacks on from its end, whatever the file says."""
    tree = neox()
    for token in tree["added_tokens"]:
        token["id"] += 100
    tokenizer, whole = CorpusTokenizer(tree), Tokenizer.from_str(json.dumps(tree))
    for content in ("<s>", "  ", " " * 24, "<think>"):
        assert tokenizer.id_of(content) == whole.token_to_id(content)
        assert tokenizer.token_bytes[whole.token_to_id(content)] == content.encode()
    assert tokenizer.vocab_size == whole.get_vocab_size()


def test_texts_that_hold_added_tokens_are_known_and_stay_text() -> None:
    text = "a  <think>b"
    assert NEOX_TOKENIZER.holds_added_token(text) and not NEOX_TOKENIZER.holds_added_token("a  < think>b")
    ids = NEOX_TOKENIZER.encode(text).tolist()
    assert NEOX_TOKENIZER.id_of("<think>") not in ids and NEOX_TOKENIZER.id_of("  ") in ids
    assert NEOX_TOKENIZER.is_lossless(text, ids)


def test_a_special_run_of_spaces_is_not_parsed() -> None:
    tree = neox()
    tree["added_tokens"][-3]["special"] = True  # two spaces
    tokenizer = CorpusTokenizer(tree)
    assert tokenizer.id_of("  ") not in tokenizer.encode("a  b").tolist()
    assert tokenizer.holds_added_token("a  b")


def test_text_size_is_of_ids_that_texts_can_hold() -> None:
    """A model needs no embedding of a mark that was added behind its vocabulary, and of what a text begins with."""
    tree, size = neox(), len(NEOX_TOKENIZER.token_bytes)
    assert (tree["added_tokens"][-1]["content"], NEOX_TOKENIZER.text_size) == ("<think>", size - 1)
    assert CorpusTokenizer(tree, {"bos_token": "<think>", "add_bos_token": True}).text_size == size


def test_a_tokenizer_that_reads_probes_by_its_added_tokens_is_refused(tmp_path: Path) -> None:
    """A mark that a probe holds literally is left out of the comparison; one that a normalizer makes of it is found."""
    tree = byte_level()
    tree["added_tokens"] = [
        {"id": 300, "content": "DEF", "special": False, "normalized": True, "single_word": False, "lstrip": False,
         "rstrip": False}
    ]  # fmt: skip
    assert CorpusTokenizer(tree).holds_added_token("x DEF y")
    tree["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"reads 'def f\(n\).* instead of \[300, "):
        CorpusTokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["<s>", "<think>", "</think>"])
@pytest.mark.parametrize("tree", [BYTE_LEVEL, sentencepiece("BPE", "normalizer"), sentencepiece("Unigram", "always")])
def test_special_and_added_tokens_are_never_parsed_in_text(tree: dict[str, Any], content: str) -> None:
    tokenizer = CorpusTokenizer(tree)
    text = f"a{content}cat"
    ids = tokenizer.encode(text)
    assert tokenizer.id_of(content) not in ids.tolist()
    assert tokenizer.is_lossless(text, ids)


def test_special_tokens_are_not_found_by_whole_word_lookup() -> None:
    tree = byte_level()
    tree["model"]["ignore_merges"] = True
    tree["model"]["vocab"]["<s>"] = 900
    tree["added_tokens"] = [{"id": 900, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
                             "rstrip": False, "normalized": False}]  # fmt: skip
    tree["pre_tokenizer"]["use_regex"] = False
    tokenizer = CorpusTokenizer(tree)
    assert tokenizer.id_of("<s>") == 900
    assert 900 not in tokenizer.encode("<s>").tolist()


def test_added_tokens_have_their_literal_bytes() -> None:
    tokenizer = CorpusTokenizer(byte_level())
    think = tokenizer.id_of("<think>")
    assert think is not None and tokenizer.token_bytes[think] == b"<think>"
    assert tokenizer.id_of("<nothing>") is None
    assert tokenizer.vocab_size == 303 == len(tokenizer.token_bytes)


def test_truncation_padding_and_dropout_of_the_file_are_ignored() -> None:
    tree = byte_level()
    tree["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    tree["model"]["dropout"] = 0.9
    assert CorpusTokenizer(tree).encode(TEXT).tolist() == CorpusTokenizer(byte_level()).encode(TEXT).tolist()


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize("prepend", ["normalizer", "always", "first"])
def test_the_dummy_space_is_no_byte_of_the_text(kind: str, prepend: str) -> None:
    tokenizer = CorpusTokenizer(sentencepiece(kind, prepend))
    ids = tokenizer.encode("cat cat\n")
    assert tokenizer.prepends_space
    assert [tokenizer.token_bytes[i] for i in ids] == [b" cat", b" cat", b"\n"]
    assert tokenizer.ends(ids).tolist() == [3, 7, 8]
    assert tokenizer.is_lossless("cat cat\n", ids)
    assert tokenizer.decode_bytes(ids, continues=True) == b" cat cat\n"


def test_without_a_dummy_space_nothing_is_taken_off() -> None:
    tokenizer = CorpusTokenizer(sentencepiece("BPE", "never"))
    assert not tokenizer.prepends_space
    assert tokenizer.ends(tokenizer.encode(" cat")).tolist() == [4]


DUMMY_SPACES = CorpusTokenizer(sentencepiece("BPE", "always"))


@given(st.lists(st.text(alphabet="caté \n▁中A", max_size=6), max_size=6))
def test_all_texts_at_once_are_as_one_by_one(texts: list[str]) -> None:
    """For one with white space among its added tokens, and one with dummy spaces, which has not all texts."""
    for tokenizer in (NEOX_TOKENIZER, DUMMY_SPACES):
        ids = tokenizer.encode_batch(texts)
        assert tokenizer.are_lossless(texts, ids) == [
            tokenizer.is_lossless(t, i) for t, i in zip(texts, ids, strict=True)
        ]
        for each, ends in zip(ids, tokenizer.ends_of_each(ids), strict=True):
            pieces = [tokenizer.decode_bytes(each[: n + 1]) for n in range(len(each))]
            assert ends.tolist() == [len(piece) for piece in pieces]


def test_lossy_tokenization_is_noticed() -> None:
    tokenizer = CorpusTokenizer(sentencepiece("BPE", "normalizer"))
    assert not tokenizer.is_lossless("▁", tokenizer.encode("▁"))  # ▁ stands for a space, so it cannot stand for itself
    folded = byte_level() | {"normalizer": {"type": "Lowercase"}}
    assert not CorpusTokenizer(folded).is_lossless("A", CorpusTokenizer(folded).encode("A"))


def test_bos_is_what_the_tokenizer_declares(tmp_path: Path) -> None:
    plain = byte_level()
    assert CorpusTokenizer(plain).bos_id is None
    assert CorpusTokenizer(sentencepiece("BPE", "normalizer")).bos_id == 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    for add, expected in ((True, 300), (False, None)):
        settings = {"bos_token": {"content": "<s>"}, "add_bos_token": add}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert CorpusTokenizer.load(tmp_path).bos_id == expected


def test_loads_a_folder_or_a_file_with_the_same_digest(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(byte_level()))
    assert CorpusTokenizer.load(tmp_path).digest == CorpusTokenizer.load(file).digest
    digest = CorpusTokenizer.load(tmp_path).digest
    file.write_text(json.dumps(byte_level() | {"normalizer": {"type": "NFC"}}))
    assert CorpusTokenizer.load(tmp_path).digest != digest


def test_what_is_no_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        CorpusTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Sorcery"}}')
    with pytest.raises(UserError, match="not a tokenizer"):
        CorpusTokenizer.load(tmp_path)
    with pytest.raises(UserError, match="nobody/nothing"):
        CorpusTokenizer.load("nobody/nothing")
    with pytest.raises(UserError, match="no such folder"):
        CorpusTokenizer.load("./not/a/folder")


def test_model_digest_is_of_weights_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"w")
    digest = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("changed")
    assert model_digest(tmp_path) == digest
    (tmp_path / "model.safetensors").write_bytes(b"v")
    assert model_digest(tmp_path) != digest


def test_weights_are_counted_in_the_headers(tmp_path: Path) -> None:
    model = qwen(300)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert count_weights(tmp_path) == sum(p.numel() for p in model.parameters())
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(UserError, match="not a safetensors file"):
        count_weights(tmp_path)


# ---------------------------------------------------------------------------------------- real tokenizers


def documents(path: Path, *columns: str) -> list[str]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [unicodedata.normalize("NFC", "\n\n".join(str(r[c]) for c in columns)) for r in records]


def inside_character(tokenizer: CorpusTokenizer, text: str) -> int:
    """Tokens that start in the middle of a character."""
    raw = np.frombuffer(text.encode(), np.uint8)
    starts = tokenizer.ends(tokenizer.encode(text))[:-1]
    return int(((raw[starts] & 0xC0) == 0x80).sum())


@pytest.mark.parametrize(
    ("name", "inside"),
    [("tokenizers/deepseek-r1-distill-qwen", 2), ("tokenizers/minimind", 1875), ("models/stories260k", 44226)],
)
def test_real_tokenizers_are_lossless_and_split_characters(real_data: Path, name: str, inside: int) -> None:
    tokenizer = CorpusTokenizer.load(real_data / name)
    latex = documents(real_data / "omnimath" / "omni_math_rule.jsonl", "problem", "solution")
    chinese = documents(real_data / "cmath" / "cmath_dev.jsonl", "input", "golden", "grade")
    for text, ids in zip(latex + chinese, tokenizer.encode_batch(latex + chinese), strict=True):
        assert tokenizer.is_lossless(text, ids)
        assert tokenizer.ends(ids)[-1] == len(text.encode())
    assert sum(inside_character(tokenizer, text) for text in chinese) == inside


def test_r1_reads_its_special_tokens_in_text_as_plain_text(real_data: Path) -> None:
    tokenizer = CorpusTokenizer.load(real_data / "tokenizers" / "deepseek-r1-distill-qwen")
    assert (tokenizer.id_of("<think>"), tokenizer.id_of("</think>"), tokenizer.bos_id) == (151648, 151649, 151646)
    for text in ("so <think>hm</think> yes", "end<｜end▁of▁sentence｜>of text", "<|im_start|>"):
        ids = tokenizer.encode(text)
        assert ids.max() < 151643
        assert tokenizer.is_lossless(text, ids)
