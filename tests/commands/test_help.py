"""The help of `rpt`: its examples are ones that the commands accept."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer

from commands.cli import app, command_line
from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import StudyConfig

ROOT = Path(__file__).parent.parent.parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def kind_of(path: str) -> type[Config]:
    """Return the kind of configuration that a path of an example names."""
    if path.startswith("data_manifests/"):
        return Manifest
    return StudyConfig if Path(path).name.startswith("study") else Recipe


def examples(name: str) -> list[list[str]]:
    """Return the words of the examples of a command."""
    return [
        shlex.split(line) for line in re.findall(r"rpt [^\n]*\S", (COMMANDS[name].help or "").partition("Example")[2])
    ]


def configs(words: list[str]) -> list[str]:
    """Return the shipped YAML files among the words."""
    return [word for word in words if word.endswith(".yaml") and (ROOT / word).is_file()]


def accepts(path: str, overrides: list[str]) -> bool:
    """Return whether a shipped YAML file takes the overrides."""
    try:
        load(kind_of(path), ROOT / path, overrides)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_overrides_of_the_help_are_accepted(name: str) -> None:
    given = examples(name)
    for words in given:
        overrides = [value for option, value in itertools.pairwise(words) if option == "--set"]
        assert not overrides or accepts(configs(words)[0], overrides), words
    paths = {path for words in given for path in configs(words)} or {"data_manifests/demo.yaml"}
    for option in COMMANDS[name].params:
        if "--set" in option.opts:
            for override in re.findall(r"`([\w.]+=[^`]+)`", option.help):
                assert any(accepts(path, [override]) for path in paths), f"{override}: {paths}"


@pytest.mark.parametrize("name", ["rpt", *sorted(COMMANDS)])
def test_flags_show_no_type_of_a_value(name: str) -> None:
    group = command_line()
    command = group if name == "rpt" else group.commands[name]
    options = command.get_params(typer.Context(command, info_name=name))
    flags = [option for option in options if getattr(option, "is_flag", False)]
    assert any("--help" in flag.opts for flag in flags)
    assert all(flag.metavar == "" for flag in flags)
