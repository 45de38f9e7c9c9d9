"""Prompt templates: their one slot, and that no text changes without a new version."""

import hashlib

import pytest

from pipeline.config.errors import UserError
from pipeline.task.templates import TEMPLATES, Template, template_named

DIGESTS = {
    "v0": (1, "8581f93bae72"),
    "v1": (1, "59976f88b2b9"),
    "v2": (1, "8ac249469680"),
    "v3": (1, "91e15fa9798f"),
    "v4": (1, "21dd3a2680c1"),
    "v5": (1, "41f58d418811"),
    "v6": (1, "00d236b2f5f4"),
    "brief": (1, "325acfbbee01"),
    "question": (1, "779f2c0f2bff"),
    "math": (1, "c24e31069ad2"),
}
"""Version and digest of each text. Whoever changes a text raises its version, then writes both here."""


def test_a_text_never_changes_without_a_new_version():
    now = {t.name: (t.version, hashlib.sha256(t.text.encode()).hexdigest()[:12]) for t in TEMPLATES.values()}
    assert now == DIGESTS


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_before_context_after_make_up_the_text(template):
    assert template.text == template.before + "{context}" + template.after
    assert "{context}" not in template.before + template.after


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("v")])
def test_the_papers_templates_ask_for_reasoning_and_a_literal_box(name):
    text = TEMPLATES[name].text
    assert "step by step" in text
    assert r"\boxed{}" in text and r"\boxed{ para}" in text
    assert "{{" not in text and "}}" not in text, "format braces left in the text"


def test_context_stands_bare_in_v0_between_fences_in_v1_to_v6():
    assert TEMPLATES["v0"].after == "" and "```" not in TEMPLATES["v0"].text
    for name in ("v1", "v2", "v3", "v4", "v5", "v6"):
        assert TEMPLATES[name].before.endswith("```\n") and TEMPLATES[name].after.startswith("\n```")


@pytest.mark.parametrize("text", ["no slot", "{context} twice {context}"])
def test_exactly_one_slot(text):
    with pytest.raises(ValueError, match="exactly once"):
        Template("broken", 1, text)


def test_unknown_name_lists_the_known_ones():
    assert template_named("brief") is TEMPLATES["brief"]
    with pytest.raises(UserError, match=r"no prompt template `v7`.*known: v0, v1"):
        template_named("v7")
