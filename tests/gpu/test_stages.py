"""Stages find the GPU by themselves, and write there what they write without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import polars as pl
import pytest
import torch

from pipeline.core.config import Recipe, load
from pipeline.evaluation.difficulty import with_entropy_of
from pipeline.grpo.sampler import Sampler
from pipeline.grpo.screening import read_pass_rates
from pipeline.scoring.proxy import load_proxy
from pipeline.scoring.tokens import CorpusTokenizer
from stages import evaluate, finetune, score, screen
from tests.evaluation.scripted import reasoner
from tests.gpu.simulated import SimulatedGpu
from tests.grpo.colours import make_policy, publish_shards, write_recipe
from tests.scoring.models import TEXTS
from tests.stages.published import InProcess
from tests.stages.test_evaluate import SITES, recipe_with
from tests.stages.test_score import TRAIN, manifest, run, scores_of

ResultT = TypeVar("ResultT")


@pytest.fixture
def both(
    gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[str], ResultT]], list[ResultT]]:
    """What a function gives that is told its device's name, without the GPU and with it; models are loaded anew."""

    def called(function: Callable[[str], ResultT]) -> list[ResultT]:
        results = []
        for device in ("cpu", "cuda"):
            for cache in (score._proxy, screen._policy):
                cache.cache_clear()
            with monkeypatch.context() as patch:
                if device == "cpu":
                    patch.setattr(torch.cuda, "is_available", lambda: False)
                    patch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
                results.append(function(device))
        return results

    return called


def test_scores_of_fitted_proxies(both: Callable[..., list[pl.DataFrame]], tmp_path: Path) -> None:
    def scored(device: str) -> pl.DataFrame:
        table = pl.DataFrame(scores_of(run(tmp_path / device, TEXTS[:8], manifest({"train": TRAIN}))[1]))
        if device == "cuda":
            folders = [path.parent for path in tmp_path.rglob("cuda/proxy/**/config.json")]
            assert folders and score._proxy.cache_info().currsize == len(folders)
            tokenizer = str(folders[0])
            assert {score._proxy(str(f), tokenizer, "float32").device.type for f in folders[:1]} == {"cuda"}
        return table

    here, there = both(scored)
    assert here.drop("entropy", "entropy_partial", "nll", "rank").equals(
        there.drop("entropy", "entropy_partial", "nll", "rank")
    )
    for name in ("entropy", "entropy_partial", "nll"):
        assert ((here[name].explode() - there[name].explode()).abs() < 1e-3).all()


def test_pass_rates(both: Callable[..., list[pl.DataFrame]], tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "policy")
    recipe = load(Recipe, write_recipe(tmp_path / "recipe.yaml", policy), ["screen.where=position = 5"])
    shards = publish_shards(tmp_path / "work", policy, sites=6)

    def screened(device: str) -> pl.DataFrame:
        return read_pass_rates(screen.screen(recipe, shards, work=tmp_path / device, executor=InProcess()))

    here, there = both(screened)
    assert here.equals(there) and len(here) == 6


def test_readings_and_answers(
    both: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, recipe = reasoner(tmp_path / "policy", "4", {"=": "4", ".": " "}, "e"), recipe_with()
    devices, load_policy = [], Sampler.load

    def seen(*args: object, **options: object) -> Sampler:
        sampler = load_policy(*args, **options)  # type: ignore[arg-type]
        devices.append(sampler.model.device.type)
        return sampler

    monkeypatch.setattr(Sampler, "load", seen)
    here, there = both(
        lambda _: (evaluate.read_policy("a", policy, recipe, SITES), finetune.read_policy("a", policy, recipe, SITES))
    )
    assert repr(here) == repr(there)
    assert devices == ["cpu", "cpu", "cuda", "cuda"]


def test_difficulty_by_another_model(both: Callable[..., list[list[float]]], tmp_path: Path) -> None:
    folder = reasoner(tmp_path / "policy", "4", {"=": "4", ".": " "}, "e")
    tokenizer = CorpusTokenizer.load(folder)

    def entropies(device: str) -> list[float]:
        proxy = load_proxy(folder, tokenizer, "float32")
        assert proxy.device.type == device
        sites = with_entropy_of(proxy, tokenizer, SITES, top_k=16, batch=3, advance=lambda *_: None)
        return [site.entropy for site in sites]

    here, there = both(entropies)
    assert there == pytest.approx(here, abs=1e-4)
