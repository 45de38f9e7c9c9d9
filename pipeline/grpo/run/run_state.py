"""How far a training run has come, as its checkpoints store it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.grpo.data.outcomes import GroupOutcome, Outcomes
from pipeline.grpo.run.early_stopping import EarlyStopping
from pipeline.grpo.run.flops import ComputeUsed


@dataclass
class RunState:
    """The counters of a run that decide what its next step does; the same on every rank."""

    step: int = 0
    """Steps done."""
    draws: int = 0
    """Sites drawn since the run began."""
    outcomes: Outcomes = ()
    """Of the groups sampled so far, if the recipe draws by them."""
    watch: EarlyStopping = field(default_factory=EarlyStopping)
    spent: ComputeUsed = field(default_factory=ComputeUsed)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> RunState:
        """Return the state that a checkpoint stores."""
        watch, spent = EarlyStopping.of(state["watch"]), ComputeUsed(**state["spent"])
        return cls(state["step"], state["draws"], outcomes_of(state), watch, spent)

    def state(self) -> dict[str, Any]:
        """Return the JSON values which a checkpoint stores."""
        return {
            "step": self.step,
            "draws": self.draws,
            "outcomes": [list(outcome) for outcome in self.outcomes],
            "watch": self.watch.state(),
            "spent": self.spent.state(),
        }


def outcomes_of(state: Mapping[str, Any]) -> Outcomes:
    """Return the outcomes that a checkpoint's state holds; none, if it is older than they are."""
    return tuple(GroupOutcome(*values) for values in state.get("outcomes", ()))
