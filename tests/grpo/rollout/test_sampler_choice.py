from __future__ import annotations

import pytest

from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.training import RolloutConfig
from pipeline.grpo.rollout.sampler_choice import choose_sampler, with_sampler

HERE = {"installed": True, "gpu": True}


@pytest.mark.parametrize(
    ("reward", "server", "ranks", "machine", "sampler", "because"),
    [
        ("prefix", None, 1, HERE, "vllm", "there is a GPU"),
        ("prefix", None, 1, HERE | {"installed": False}, "built_in", "not installed"),
        ("prefix", None, 1, HERE | {"gpu": False}, "built_in", "no GPU"),
        ("prefix", None, 8, HERE, "built_in", "--vllm-server"),
        ("prefix", "http://a:1", 8, {"installed": False, "gpu": False}, "vllm", "http://a:1"),
        ("dense", "http://a:1", 1, HERE, "built_in", "reads probabilities"),
        ("information_gain", None, 1, HERE, "built_in", "reads probabilities"),
    ],
)
def test_what_auto_stands_for(
    reward: str, server: str | None, ranks: int, machine: dict[str, bool], sampler: str, because: str
) -> None:
    found, reason = choose_sampler(reward, server, ranks, **machine)
    assert found == sampler and because in reason


def test_the_choice_is_settled_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A server is given, so that the answer does not depend on the machine."""
    recipe = Recipe(name="a", policy=PolicyConfig(model="m"))
    assert recipe.rollout.sampler == "auto"
    assert with_sampler(recipe, "http://a:1").rollout.sampler == "vllm"
    said = "".join(capsys.readouterr())
    assert said.count("\n") == 1 and "vLLM" in said and "http://a:1" in said and "rollout.sampler: auto" in said
    asked = recipe.model_copy(update={"rollout": RolloutConfig(sampler="built_in")})
    assert with_sampler(asked, "http://a:1") == asked
    assert not "".join(capsys.readouterr())
