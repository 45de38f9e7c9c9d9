"""Both readings of a policy whose answers are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.training import RolloutConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.held_out import choose_sites
from pipeline.evaluation.predictions import (
    Prediction,
    Predictions,
    predict_direct,
    predict_with_reasoning,
)
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import NextToken
from tests.evaluation.scripted import END, SPARE_ROW, outcome, reasoner, save_policy, site
from tests.grpo.prompts import prompts_for

SITES = [
    site("d0", 9, 1.0, "2 + 2 =", ["4", ".", "\n"]),
    site("d0", 11, 1.0, "2 + 2 =4.", ["\n", "T"]),
    site("d1", 5, 1.0, "4 + 3 =", ["7", " apples"]),
    site("d1", 9, 1.0, "Seven", [" ", "=", " 7"]),
    site("d2", 3, 1.0, "the character ", ["数", "学"]),
]


class Ticks(list):
    def __call__(self, steps: int, units: int) -> None:
        self.append((steps, units))


def read(folder: Path, kind: str, batch: int = 2, room: int = 10) -> tuple[list[Prediction], Ticks]:
    tokenizer = CorpusTokenizer.load(folder)
    policy, ticks = Sampler.load(folder, tokenizer), Ticks()
    if kind == "direct":
        return predict_direct(policy, tokenizer, SITES, batch=batch, advance=ticks), ticks
    prompts = prompts_for(folder)
    rollout = RolloutConfig(max_new_tokens=room, batch_rows=batch)
    recipe = Recipe(name="a", policy=PolicyConfig(model=str(folder)), rollout=rollout)
    return predict_with_reasoning(policy, prompts, SITES, recipe, advance=ticks), ticks


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_direct_is_the_arg_max_after_the_bare_context(tmp_path, batch):
    # after "=" the policy says "4", after "n" a space, after " " a token of one byte of three, else a full stop
    policy = save_policy(tmp_path, {"=": "4", "n": " ", " ": "<think>"}, otherwise=".")
    answers, ticks = read(policy, "direct", batch)
    assert [answer.response for answer in answers] == [b"4", b".", b"4", b" ", b"<think>"]
    assert [answer.hit for answer in answers] == [True, False, False, True, False]
    tokenizer = CorpusTokenizer.load(policy)
    assert tokenizer.decode_bytes(answers[0].prompt_ids) == b"2 + 2 =", "no template and nothing else around it"
    assert all(len(answer.response_ids) == 1 for answer in answers)
    assert sum(steps for steps, _ in ticks) == len(SITES)


def test_the_beginning_that_a_model_declares_stands_before_the_context(tmp_path):
    policy = save_policy(tmp_path, {}, otherwise=".")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": END, "add_bos_token": True}))
    answers, _ = read(policy, "direct")
    tokenizer = CorpusTokenizer.load(policy)
    assert tokenizer.decode_bytes(answers[0].prompt_ids) == f"{END}2 + 2 =".encode()


def test_a_token_that_is_part_of_a_character_is_judged_by_its_bytes(tmp_path):
    first = "数".encode()[:1]
    split = replace(site("d", 0, 1.0, "the character ", ["数"]), boundaries=(1, 3))
    whole = replace(split, boundaries=(3,))
    policy = save_policy(tmp_path, {}, otherwise=".")
    tokenizer = CorpusTokenizer.load(policy)

    class SaysTheFirstByte:
        def next_tokens(self, contexts):
            return [NextToken(tokenizer.token_bytes.index(first), 0.0, 0.0, 0.0) for _ in contexts]

    answers = predict_direct(SaysTheFirstByte(), tokenizer, [split, whole], batch=1, advance=Ticks())
    assert [answer.outcome.reason for answer in answers] == ["match", "off_boundary"]


def test_a_row_of_the_output_that_is_no_token_is_no_hit(tmp_path):
    answers, _ = read(save_policy(tmp_path, {}, otherwise=SPARE_ROW), "direct")
    assert {(answer.response, answer.outcome.reason) for answer in answers} == {(b"", "empty")}


@pytest.mark.parametrize("batch", [1, 3])
def test_reasoning_boxes_its_prediction(tmp_path, batch):
    answers, ticks = read(reasoner(tmp_path, "7 apples", {}, "."), "reasoning", batch)
    assert {answer.response for answer in answers} == {rb"</think>\boxed{7 apples}"}
    assert [answer.outcome.reason for answer in answers] == ["mismatch", "mismatch", "match", "mismatch", "mismatch"]
    prompt = CorpusTokenizer.load(tmp_path).decode_bytes(answers[0].prompt_ids)
    assert prompt == b"Complete the text: 2 + 2 =<think>\n"
    assert sum(tokens for _, tokens in ticks) == 3 * len(SITES)  # </think>, the box, the end


def test_a_response_that_does_not_end_is_unfinished(tmp_path):
    answers, _ = read(save_policy(tmp_path, {}, otherwise="."), "reasoning", room=6)
    assert {(answer.response, answer.outcome.reason) for answer in answers} == {(b"......", "unfinished")}


def test_reading_at_some_sites():
    answers = tuple(Prediction((i,), (i,), b"", outcome(i % 2 == 0)) for i in range(5))
    reading = Predictions("after", "reasoning", answers)
    assert reading.name == "reasoning after"
    assert reading.at([0, 1, 4]).hits_N.tolist() == [True, False, True]
    assert reading.at([]).hits_N.dtype == bool


def test_chosen_sites_do_not_depend_on_order_or_on_the_sites_around_them():
    ids = [f"site-{i}" for i in range(200)]
    chosen = {ids[i] for i in choose_sites(ids, 20, seed=1)}
    assert len(chosen) == 20
    assert {ids[::-1][i] for i in choose_sites(ids[::-1], 20, seed=1)} == chosen
    smaller = [site_id for site_id in ids if site_id in chosen or site_id.endswith("7")]
    assert {smaller[i] for i in choose_sites(smaller, 20, seed=1)} == chosen
    assert {ids[i] for i in choose_sites(ids, 20, seed=2)} != chosen
    assert choose_sites(ids, 1000, seed=1) == list(range(200))
    assert choose_sites([], 5, seed=1) == []
