"""Prompt templates: their one slot, and that no text changes without a new version."""

import hashlib
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.task.templates import MAX_BYTES, TEMPLATES, Template, read_template, template_named, template_of

DIGESTS = {
    "v0": (1, "8581f93bae72"),
    "v1": (1, "59976f88b2b9"),
    "v2": (1, "8ac249469680"),
    "v3": (1, "91e15fa9798f"),
    "v4": (1, "21dd3a2680c1"),
    "v5": (1, "41f58d418811"),
    "v6": (1, "00d236b2f5f4"),
    "brief": (1, "325acfbbee01"),
    "direct": (1, "2bdd53330ed6"),
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
    with pytest.raises(UserError, match=r"no prompt template `v7`.*known: auto, v0, v1"):
        template_named("v7")


def test_auto_goes_by_the_way_of_thinking():
    chosen = {mode: template_of("auto", mode).name for mode in ("auto", "tags", "free", "none")}
    assert chosen == {"auto": "v0", "tags": "v0", "free": "v0", "none": "direct"}
    assert template_of("v4", "none") is TEMPLATES["v4"], "what the recipe names is used"
    assert "step by step" not in TEMPLATES["direct"].text


def test_a_file_is_a_template_versioned_by_its_content(tmp_path: Path):
    file = tmp_path / "mine.txt"
    data = "\ufeffA: 1 {2}\r\nB: {context}\r\nC:\n\n".encode()
    file.write_bytes(data)
    read = template_of(str(file), "free")
    assert read == Template("mine.txt", hashlib.sha256(data).hexdigest()[:12], "A: 1 {2}\nB: {context}\nC:\n")
    file.write_bytes(data + b" ")
    assert read_template(file).version != read.version


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no slot", "needs {context} once, but has it 0 times"),
        (b"{context} twice {context}", "needs {context} once, but has it 2 times"),
        (b"", "needs {context} once"),
        ("é {context}".encode("latin-1"), "not UTF-8"),
        (b"{context}" + b" " * MAX_BYTES, "more than 256 KiB"),
        (None, "no such prompt template"),
    ],
)
def test_a_file_that_is_no_template_is_refused_with_its_path(tmp_path: Path, data: bytes | None, message: str):
    file = tmp_path / "mine.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(UserError) as refused:
        read_template(file)
    assert message in refused.value.message and refused.value.where == str(file) and refused.value.hint


def test_the_largest_file_is_read(tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"{context}".ljust(MAX_BYTES))
    assert len(read_template(file).text) == MAX_BYTES
    file = tmp_path / "folder.txt"
    file.mkdir()
    with pytest.raises(UserError, match="no such prompt template"):
        read_template(file)
