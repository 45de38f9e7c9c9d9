"""The run specification: all that a stage's process is told, in one JSON file. Starts without torch.

An `rpt` command reads the recipe and the manifest once, finds the records to train on, and writes the result. Every
rank reads that file, on this machine or on another, so no option is parsed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.files import replace_text


class RunSpec(Config):
    """What every stage with a recipe is told; a stage's own specification adds its inputs."""

    recipe: Recipe
    """With its overrides applied."""
    run: Path
    """Folder of the run."""


class TrainingSpec(RunSpec):
    """What every stage that trains is told."""

    deepspeed_config: Path | None = None
    """Topology; None: ZeRO-3 for the devices there are."""


SpecT = TypeVar("SpecT", bound=RunSpec)


def write_spec(spec: RunSpec, file: Path) -> None:
    """Write a specification for `read_spec`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, spec.model_dump_json(indent=1) + "\n")


def read_spec(kind: type[SpecT], arguments: Sequence[str]) -> SpecT:
    """Return the specification that the arguments of a process name.

    Args:
        kind: the stage's specification.
        arguments: one file, and perhaps the `--local_rank=N` that DeepSpeed's launcher adds.

    Raises:
        UserError: there is not one file, it cannot be read, or it is not of this kind.
    """
    words = [word for word in arguments if not word.startswith("--local_rank")]
    hint = "write it with `rpt train RECIPE --write-spec FILE`"
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError("give one argument, the specification of the run", where=" ".join(words), hint=hint)
    file = Path(words[0])
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the specification: {error.strerror}", where=file, hint=hint) from error
    except ValidationError as error:
        problem = error.errors()[0]
        said = " ".join([*([".".join(map(str, problem["loc"]))] if problem["loc"] else []), problem["msg"]])
        raise UserError(f"not a {kind.__name__}: {said}", where=file, hint=hint) from error
