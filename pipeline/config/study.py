"""Studies: several runs from one policy, compared over seeds, as frozen models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config

LARGER = "larger"
"""Name of the larger model in the report."""


class ArmConfig(Config):
    """One way of training the policy of a study: one run per seed."""

    command: Literal["train", "ntp", "sft", "warmup"] = "train"
    """The command of `rpt` that trains this arm; `warmup` goes on with supervision where a warm-up ended."""
    manifest: tuple[str, ...] = ()
    """`key=value` overrides of the study's manifest, for other shards than those of the other arms."""
    set: tuple[str, ...] = ()
    """`key=value` overrides of the study's recipe."""
    compute_of: str | None = None
    """Name of another arm: runs of this arm stop at the FLOPs of that arm's run with the same seed."""
    imitates: str | None = None
    """`sft`: name of another arm, from whose saved right responses (same seed) this arm learns."""
    finetune: bool = False
    """Continue this arm's runs with RL on questions."""


class StudyConfig(Config):
    """Arms that start from the same policy and are compared over seeds. Example: recipes/study-demo.yaml."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the study."""
    description: str = ""
    """One line about the study."""
    manifest: str
    """Path of the manifest whose held-out sites all arms are evaluated at."""
    recipe: str
    """Path of the recipe that all arms start from."""
    finetune: str | None = None
    """Path of the recipe for RL on questions; null: no arm goes on to questions."""
    prepare: tuple[str, ...] = ()
    """Python modules that prepare the inputs of the recipes; they are run first."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Values of `seed` in the recipe: one run per arm and seed."""
    set: tuple[str, ...] = ()
    """`key=value` overrides of the recipe, for all arms and for the evaluation."""
    finetune_set: tuple[str, ...] = ()
    """`key=value` overrides of the recipe for RL on questions."""
    reference: str = "rpt"
    """Name of the arm with which the others are compared."""
    larger: str | None = None
    """A larger model, whose direct prediction is compared with the reasoning of `reference` (the paper's Figure 4)."""
    arms: dict[str, ArmConfig]
    """Arms by name, in the order of the report."""
    quick: tuple[str, ...] = ()
    """`key=value` overrides of the study itself, for `rpt study --quick`."""

    @model_validator(mode="after")
    def _arms_are_there(self) -> StudyConfig:
        for name, arm in self.arms.items():
            for other in (arm.compute_of, arm.imitates):
                if other is not None and (other == name or other not in self.arms):
                    raise ValueError(f"arms.{name} refers to {other!r}; arms: {', '.join(self.arms)}")
            if arm.finetune and self.finetune is None:
                raise ValueError(f"arms.{name}.finetune needs `finetune`, the recipe for RL on questions")
        if self.larger and LARGER in self.arms:
            raise ValueError(f"arms.{LARGER} has the name of the model of `larger`: name the arm otherwise")
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is no arm; arms: {', '.join(self.arms)}")
        return self
