"""A policy whose answers are known: a real `transformers` model that looks at the last byte only.

Its tokens are the 256 bytes and a few whole answers. Attention and MLP add nothing, so the next token is a table
lookup: a bigram model written by hand into the weights.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from pipeline.shards.reader import Site
from pipeline.task.reward import Outcome
from tests.toys import byte_level_tokenizer

END = "<|end|>"
SPARE_ROW = "(a row of the output that is no token)"
ROWS = 288


def save_policy(folder: Path, after: Mapping[str, str], otherwise: str, answers: tuple[str, ...] = ()) -> Path:
    """A policy whose most likely token after `token` is `after[token]`, or `otherwise`.

    Args:
        folder: to create.
        after: by single-byte token or added token; `SPARE_ROW` as a value names an id the tokenizer does not have.
        otherwise: after all other tokens.
        answers: tokens to add, such as `\\boxed{7}`.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    file = str(byte_level_tokenizer(folder, [], vocab_size=257) / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_tokens([AddedToken(answer, normalized=False) for answer in answers])
    tokenizer.save(file)

    def id_of(token: str) -> int:
        if token == SPARE_ROW:
            return ROWS - 1
        (one,) = tokenizer.encode(token, add_special_tokens=False).ids
        return one

    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=ROWS,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=id_of(END),
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(ROWS))
        model.lm_head.weight[id_of(otherwise)] = 1.0
        for token, follower in after.items():
            model.lm_head.weight[:, id_of(token)] = 0.0
            model.lm_head.weight[id_of(follower), id_of(token)] = 1.0
    model.generation_config.eos_token_id = id_of(END)
    model.save_pretrained(folder)
    return folder


def tie(folder: Path, token: str, followers: tuple[str, ...]) -> None:
    """Change a saved policy: after `token` all `followers` are as likely."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for follower in followers:
            model.lm_head.weight[tokenizer.token_to_id(follower), tokenizer.token_to_id(token)] = 1.0
    model.save_pretrained(folder)


def reasoner(folder: Path, answer: str, direct: Mapping[str, str], otherwise: str) -> Path:
    """A policy that thinks nothing and boxes `answer` at every site; read directly it does as `direct` says."""
    box = rf"\boxed{{{answer}}}"
    return save_policy(folder, {"\n": "</think>", "</think>": box, box: END, **direct}, otherwise, (box,))


def site(document: str, position: int, entropy: float, context: str, continuation: list[str], field: str = "a") -> Site:
    """A site; `continuation` is its tokens."""
    parts = [part.encode() for part in continuation]
    ends = tuple(len(b"".join(parts[: n + 1])) for n in range(len(parts)))
    return Site(
        f"{document}-{position}", document, position, entropy, "easy", field, context.encode(), parts[0],
        b"".join(parts), ends, "word_start", 2.0, 3,
    )  # fmt: skip


def outcome(hit: bool) -> Outcome:
    """An outcome, where only the hit matters."""
    return Outcome(1.0, "match", b"x") if hit else Outcome(0.0, "mismatch", b"y")


def as_row(one: Site) -> dict[str, object]:
    """The row of the shards' table that holds a site."""
    return {
        "site_id": one.site_id,
        "doc_id": one.doc_id,
        "position": one.position,
        "byte_offset": len(one.context),
        "field": one.field,
        "entropy": one.entropy,
        "token_class": "word_start",
        "nll": 1.0,
        "rank": 1,
        "band": one.band,
        "split": "validation",
        "context": one.context,
        "target": one.target,
        "continuation": one.continuation,
        "token_lengths": [end - begin for begin, end in pairwise((0, *one.boundaries))],
        "context_truncated": False,
    }
