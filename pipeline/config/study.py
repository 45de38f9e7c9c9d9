"""Studies: several runs from one policy, compared over seeds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config

# --------------------------------------------------------------------------------------------------- study


class ArmConfig(Config):
    """One way of training the same policy. Every seed is a run."""

    command: Literal["train", "ntp", "sft"] = "train"
    manifest: tuple[str, ...] = ()
    """`key=value` overrides of the study's manifest: other shards."""
    set: tuple[str, ...] = ()
    """`key=value` overrides of the study's recipe."""
    compute_of: str | None = None
    """Ends when it has spent the FLOPs of this arm's run with the same seed."""
    imitates: str | None = None
    """`sft`: learns from the right responses that this arm's run with the same seed saved."""
    finetune: bool = False
    """Its policies, too, go on to RL on questions."""


class StudyConfig(Config):
    """Arms that start from the same policy, and what comes of them: recipes/study-demo.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    manifest: str
    """Path of the manifest whose held-out sites all arms are evaluated at."""
    recipe: str
    """Path of the recipe that all arms start from."""
    finetune: str
    """Path of the recipe of RL on questions."""
    prepare: tuple[str, ...] = ()
    """Python modules that make what the recipes read; they are run first."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    set: tuple[str, ...] = ()
    """`key=value` overrides of the recipe, for all arms and for the evaluation."""
    finetune_set: tuple[str, ...] = ()
    """The same for RL on questions."""
    reference: str = "rpt"
    """The arm that the others are compared with."""
    arms: dict[str, ArmConfig]
    """By name, in the order of the report."""
    quick: tuple[str, ...] = ()
    """`key=value` overrides of the study itself, for `rpt study --quick`."""

    @model_validator(mode="after")
    def _arms_are_there(self) -> StudyConfig:
        for name, arm in self.arms.items():
            for other in (arm.compute_of, arm.imitates):
                if other is not None and (other == name or other not in self.arms):
                    raise ValueError(f"arms.{name} refers to {other!r}; arms: {', '.join(self.arms)}")
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is no arm; arms: {', '.join(self.arms)}")
        return self
