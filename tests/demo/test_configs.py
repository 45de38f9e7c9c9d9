from pathlib import Path

import demo
from demo.corpus import TEMPLATE
from demo.lessons import INSTRUCTION
from pipeline.config.loading import load
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
