"""The examples of a warm-up: what a response is in each mode, from which sites, and that it is always right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.task import TaskConfig
from pipeline.config.training import WarmupConfig
from pipeline.core.artifact import Record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.data.examples import Example
from pipeline.grpo.data.rule_thoughts import WORDINGS
from pipeline.grpo.data.warmup_examples import chosen_sites, right_examples, rule_examples, warmup_examples
from pipeline.shards.reader import ShardReader, Site
from pipeline.task.reward import response_bytes, score_response
from tests.grpo.colours import COLOURS, context, publish_shards
from tests.grpo.prompts import prompts_for
from tests.toys import byte_level_tokenizer

SITES, HELD_OUT = 40, 12


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has `<think>` and `</think>`, a token for each colour, and `<|end|>` as its end."""
    texts = [context(i) + c for i in range(40) for c in COLOURS] + ["</think>\\boxed{}"] * 9
    return byte_level_tokenizer(tmp_path_factory.mktemp("policy"), texts, vocab_size=330)


@pytest.fixture(scope="module")
def shards(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    return publish_shards(tmp_path_factory.mktemp("work"), policy, sites=SITES, held_out=HELD_OUT)


def written(policy: Path, sites: list[Site], seed: int = 0, **task: str) -> tuple[list[str], list[Example]]:
    """The responses to sites as text, and as examples."""
    tokens = CorpusTokenizer.load(policy)
    prompts = prompts_for(policy, TaskConfig(template="brief", **task))
    examples = rule_examples(sites, prompts, tokens, tokens.id_of("<|end|>"), seed)
    return [
        response_bytes(e.response.tolist(), tokens.token_bytes).decode(errors="replace") for e in examples
    ], examples


def test_responses_are_exactly_the_form_of_the_mode(policy: Path, shards: Record) -> None:
    """By hand; the fourth document is pink."""
    site = ShardReader(shards.files("train"))[3]
    assert site.context == b"Document 3, whose colour is"
    ((tags,), (example,)) = written(policy, [site], thinking="tags")
    ((free,), _), ((none,), _) = written(policy, [site], thinking="free"), written(policy, [site], thinking="none")
    assert none == "\\boxed{ pink}<|end|>"
    thought, _, answer = tags.partition("</think>")
    assert answer == none and free == thought + none
    kinds = [w.before.format(kind="a word") for w in WORDINGS]
    (before,) = [kind for kind in kinds if thought.startswith(kind)]
    after = WORDINGS[kinds.index(before)].after.format(kind="a word")
    tail = thought.removeprefix(before).removesuffix(f" pink{after}")
    assert tail and site.context.decode().endswith(tail), "the thought repeats the end of the context"
    tokens = CorpusTokenizer.load(policy)
    prompt = "Complete the text: Document 3, whose colour is<think>\n"
    assert response_bytes(example.prompt.tolist(), tokens.token_bytes).decode() == prompt
    assert example.response.tolist()[-5:].count(tokens.id_of("<|end|>")) == 1
    pink = tokens.encode(" pink").tolist()
    assert len(pink) == 1 and example.response.tolist().count(pink[0]) == 2, "one token, in the thought and in the box"


def test_a_given_beginning_is_not_written_again(policy: Path, shards: Record) -> None:
    site = ShardReader(shards.files("train"))[3]
    assert written(policy, [site], thinking="none", prefill="\\boxed{")[0] == [" pink}<|end|>"]


@pytest.mark.parametrize("thinking", ["tags", "free", "none"])
@pytest.mark.parametrize("tail", [b" \\boxed{4} so", b" </think> and", b' "quoted"\n', "数".encode()[:2], b""])
def test_every_example_earns_the_reward(policy: Path, shards: Record, thinking: str, tail: bytes) -> None:
    """Whatever stands at the end of the context, which the thought repeats."""
    tokens, one = CorpusTokenizer.load(policy), ShardReader(shards.files("train"))[0]
    targets = [b"}", b"{", b"\\", b"\n", b" red", "数".encode()[:1]]
    sites = [
        replace(one, site_id=f"{i}", context=one.context + tail, target=t, continuation=t, boundaries=(len(t),))
        for i, t in enumerate(targets)
    ]
    _, examples = written(policy, sites, thinking=thinking)
    prompts = prompts_for(policy, TaskConfig(template="brief", thinking=thinking))
    for site, example in zip(sites, examples, strict=True):
        *ids, end = example.response.tolist()
        said = response_bytes(ids, tokens.token_bytes)
        assert end == tokens.id_of("<|end|>")
        assert score_response(said, True, site.continuation, site.boundaries, prompts.thinking).right, said


def test_wordings_vary_with_site_and_seed_and_nothing_else(policy: Path, shards: Record) -> None:
    sites = list(ShardReader(shards.files("train")))
    first, other = written(policy, sites)[0], written(policy, sites, seed=1)[0]
    assert first == written(policy, sites)[0] and first != other
    begins = {word[:8] for word in first}
    assert begins == {wording.before[:8] for wording in WORDINGS}, "of 40 sites, each wording has some"


@pytest.mark.parametrize(("thinking", "begin"), [("tags", "</think>\\boxed{"), ("free", "\\boxed{")])
def test_a_share_answers_at_once(policy: Path, shards: Record, thinking: str, begin: str) -> None:
    """Of 40 sites half: 8 to 32 whatever the hash, by chance within 4 deviations."""
    sites, tokens = list(ShardReader(shards.files("train"))), CorpusTokenizer.load(policy)
    prompts, end = prompts_for(policy, TaskConfig(template="brief", thinking=thinking)), tokens.id_of("<|end|>")
    texts = {
        share: [
            response_bytes(example.response.tolist(), tokens.token_bytes).decode()
            for example in rule_examples(sites, prompts, tokens, end, 0, share)
        ]
        for share in (0.0, 0.5, 1.0)
    }
    at_once = [text.startswith(begin) for text in texts[0.5]]
    assert 8 <= sum(at_once) <= 32 and not any(text.startswith(begin) for text in texts[0.0])
    assert texts[0.5] == [texts[1.0 if now else 0.0][n] for n, now in enumerate(at_once)]
    for site, text in zip(sites, texts[1.0], strict=True):
        said = text.removesuffix("<|end|>").encode()
        assert prompts.thinking.at_once(said)
        assert score_response(said, True, site.continuation, site.boundaries, prompts.thinking).right
    with pytest.raises(ValueError, match="at_once"):
        WarmupConfig(at_once=0.5, thoughts="sampled")


def test_only_training_sites_are_learned(shards: Record) -> None:
    reader = ShardReader(shards.files("train"))
    held_out = {site.doc_id for site in ShardReader(shards.files("validation"))}
    chosen = chosen_sites(reader, 15, seed=0)
    assert len(chosen) == 15 and not held_out & {site.doc_id for site in chosen}
    ids = [site.site_id for site in chosen]
    assert ids == sorted(set(ids)) == [s.site_id for s in chosen_sites(reader, 15, seed=0)]
    assert ids != [s.site_id for s in chosen_sites(reader, 15, seed=1)]
    assert [s.site_id for s in chosen_sites(reader, 10**6, seed=0)] == list(reader.site_ids())
    assert set(ids) < {s.site_id for s in chosen_sites(reader, 20, seed=0)}, "more sites, the same ones among them"


def test_rl_does_not_begin_with_the_sites_of_the_warm_up(policy: Path, shards: Record) -> None:
    recipe = recipe_of(policy, examples=10)
    drawn = {d.site.site_id for d in Curriculum(shards.files("train"), recipe, None).draw(0, 0)[:10]}
    assert drawn != {site.site_id for site in chosen_sites(ShardReader(shards.files("train")), 10, recipe.seed)}


def recipe_of(policy: Path, **warmup: object) -> Recipe:
    return Recipe(
        name="r", policy=PolicyConfig(model=str(policy)), task=TaskConfig(template="brief"),
        warmup=WarmupConfig(**warmup),
    )  # fmt: skip


def test_sampled_responses_are_learned_as_they_are(policy: Path, shards: Record) -> None:
    tokens, sites = CorpusTokenizer.load(policy), ShardReader(shards.files("train"))
    prompts = prompts_for(policy)
    end = tokens.id_of("<|end|>")

    def said(text: str) -> list[int]:
        return [*tokens.encode(text.partition("</think>")[0]).tolist(), tokens.id_of("</think>"),
                *tokens.encode(text.partition("</think>")[2]).tolist(), end]  # fmt: skip

    pink = [said("I see.</think>\\boxed{ pink}"), said("</think>\\boxed{ pink.}")]
    responses = {sites[3].site_id: pink, sites[7].site_id: pink[:1], "of another site": pink}
    recipe = recipe_of(policy, thoughts="sampled")
    found = warmup_examples(recipe, sites, responses, prompts, tokens, end)
    assert [e.response.tolist() for e in found] == [*pink, pink[0]]
    assert [e.prompt.tolist() for e in found] == [prompts.ids(sites[i].context) for i in (3, 3, 7)]
    one = warmup_examples(recipe_of(policy, thoughts="sampled", examples=1), sites, responses, prompts, tokens, end)
    assert [e.response.tolist() for e in one] in (pink, pink[:1]), "the sites are limited"
    with pytest.raises(UserError, match=r"no right response at any of these sites.*rules"):
        warmup_examples(recipe, sites, {}, prompts, tokens, end)
    with pytest.raises(UserError, match=r"not right for this recipe.*rpt screen"):
        right_examples([sites[0]], {sites[0].site_id: pink}, prompts, tokens)
