from pathlib import Path

import pytest

import demo
from demo.corpus import TEMPLATE
from demo.lessons import INSTRUCTION
from pipeline.config.loading import load, manifest_of
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.task.templates import template_named

ROOT = Path(demo.__file__).parent.parent


def test_the_manifest_words_documents_as_the_models_know_them() -> None:
    manifest = load(Manifest, ROOT / "data_manifests" / "demo.yaml")
    assert manifest.corpus.text == TEMPLATE
    assert (ROOT / manifest.corpus.source).is_file()
    assert (ROOT / manifest.proxy.model).is_dir()


def test_the_recipe_prompts_as_the_policy_was_hinted() -> None:
    recipe = load(Recipe, ROOT / "recipes" / "demo.yaml")
    template = template_named(recipe.task.template)
    assert (template.before, template.after) == (INSTRUCTION, "")
    assert (ROOT / recipe.policy.model).is_dir()


@pytest.mark.parametrize("recipe", ["smollm2-135m", "qwen3-0.6b"])
def test_a_real_model_is_trained_on_shards_that_it_scored(recipe: str) -> None:
    """Proxy, tokenizer of the shards and policy are one model of one revision, with room for a step's prompts."""
    read = load(Recipe, ROOT / "recipes" / f"{recipe}.yaml")
    manifest = manifest_of(read, None)
    policy = (read.policy.model, read.policy.revision)
    assert policy == (manifest.proxy.model, manifest.proxy.revision)
    assert policy == (manifest.materialize.policy_tokenizer, manifest.materialize.policy_tokenizer_revision)
    assert read.policy.revision is not None and len(read.policy.revision) == 40, "a branch is not reproducible"
