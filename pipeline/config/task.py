"""The task part of a recipe: what the policy is asked, what responses earn, and which sites or questions are used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Expression
from pipeline.config.corpus import ValidationConfig
from pipeline.config.errors import UserError
from pipeline.config.resources import is_path

PRICED_REWARDS = ("prefix", "first_token", "answer", "math")
"""Values of `task.reward` that pay 1 for a right answer and 0 for all others, so that `task.token_price` keeps their
order."""
READING_REWARDS = ("dense", "information_gain")
"""Values of `task.reward` that read probabilities off the policy, which vLLM does not give."""


class LengthRewardConfig(Config):
    """A triangle over a response's length, highest at a budget: max(`least`, `budget` · `decay`^(step / `over_steps`)).

    `budget` and `decay` are by default RMT's (arXiv 2509.24375).
    """

    weight: float = Field(0.5, gt=0)
    """Reward of a right response of exactly the budget's length, on top of its task reward."""
    budget: int = Field(800, gt=0)
    """Budget at step 0, in policy tokens per response."""
    decay: float = Field(0.2, gt=0, le=1)
    """Factor by which the budget has shrunk after `over_steps` steps."""
    over_steps: int = Field(gt=0)
    """Steps in which the budget shrinks by `decay`; it goes on shrinking at that rate."""
    least: int = Field(1, gt=0)
    """Smallest budget, in policy tokens per response."""


Mark = Annotated[str, Field(min_length=1, max_length=100)]


class TaskConfig(Config):
    """What the policy is asked and which responses are rewarded."""

    added: ClassVar[frozenset[str]] = frozenset({"token_price"})

    template: str = Field("auto", min_length=1)
    """Name of a prompt template (`pipeline/task/templates.py`), or a text file with one `{context}`, relative to the
    recipe's folder. `auto`: `v0`, with which the paper trains; with `thinking: none`, `direct`."""
    thinking: Literal["auto", "tags", "free", "none"] = "auto"
    """Where the policy thinks. `tags`: between marks; its prediction is looked for after the end mark. `free`: before
    its last box. `none`: not at all, it answers at once. `auto`: `tags` if its tokenizer or chat template has the
    marks, else `free`."""
    think_marks: tuple[Mark, Mark] = ("<think>", "</think>")
    """The marks that open and end a thought."""
    prefill: str = ""
    """The given beginning of every response, such as `\\boxed{`. It ends the prompt and is not trained on, but is read
    as part of the response. With `tags` it stands in the thought."""
    reward: Literal["prefix", "first_token", "dense", "information_gain", "format_only", "answer", "math"] = "prefix"
    """What a response earns (`pipeline/grpo/rollout/rewards.py`). Accuracy is always measured by prefix matching,
    except with `answer` and `math`, which judge answers to questions (`rpt finetune`)."""
    targets: Literal["own", "shuffled"] = "own"
    """`shuffled` is a control: each time a site is drawn for training, its continuation is taken from another training
    site of its band. Only the form of answers and what is likely at any site can then be learned."""
    length_reward: LengthRewardConfig | None = None
    """Also rewards right responses for keeping to a token budget that shrinks (RMT)."""
    overlong_penalty_tokens: int | None = Field(None, gt=0)
    """Responses that end within this many policy tokens of the limit lose up to 1 (DAPO's soft punishment)."""
    token_price: float = Field(0.0, ge=0, le=1)
    """Price p of a token: a right answer of n policy tokens earns 1 / (1 + p·n) instead of 1, so that a policy learns
    to answer at once where it need not think. The first tokens cost p each, 1/p tokens half of the reward, and a right
    answer always earns more than a wrong one."""

    @model_validator(mode="after")
    def _marks_differ(self) -> TaskConfig:
        start, end = self.think_marks
        if start in end or end in start or not start.strip() or not end.strip():
            raise ValueError("task.think_marks: the marks must be two texts of which neither contains the other")
        return self

    @model_validator(mode="after")
    def _gain_has_a_thought(self) -> TaskConfig:
        if self.reward == "information_gain" and self.thinking == "none":
            raise ValueError("task.reward: information_gain rewards thoughts: with task.thinking: none there are none")
        return self

    @model_validator(mode="after")
    def _price_keeps_the_order(self) -> TaskConfig:
        if self.token_price and self.reward not in PRICED_REWARDS:
            raise ValueError(
                f"task.token_price: a wrong answer could earn more than a right one with task.reward: {self.reward}; "
                f"use one of {', '.join(PRICED_REWARDS)}"
            )
        if self.token_price and self.overlong_penalty_tokens:
            raise ValueError(
                "task.token_price: with task.overlong_penalty_tokens a right answer could earn less than 0"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide what is asked; a template in a file by its content instead of its path.

        Raises:
            UserError: the file cannot be read.
        """
        tree = super().identity()
        if is_path(self.template):
            try:
                content = Path(self.template).read_bytes()
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(f"cannot read the prompt template ({reason})", where=self.template) from error
            tree["template"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return tree


class SitesConfig(Config):
    """Which rows of the shards are trained on."""

    added: ClassVar[frozenset[str]] = frozenset({"by", "candidates", "floor"})

    where: Expression = "true"
    """SQL over the site columns, on top of the manifest's selection; after `rpt screen` also over `pass_rate`."""
    by: Literal["uniform", "foretold"] = "uniform"
    """How a step draws from them. `uniform`: each equally often. `foretold`: first those whose groups are likely to
    have a gradient, as a model foretells that is fitted to the run's own groups before every step."""
    candidates: int = Field(8, gt=1)
    """`foretold`: sites that are looked at for each that is drawn."""
    floor: float = Field(0.2, gt=0, le=1)
    """`foretold`: share of every draw that is uniform, so that sites with low forecasts are seen, too."""


class ScreenConfig(Config):
    """How `rpt screen` estimates the policy's pass rate at each training site."""

    where: Expression = "true"
    """SQL over the site columns: which sites are screened."""
    samples: int = Field(4, gt=0)
    """Responses per site."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Most policy tokens per response; by default `rollout.max_new_tokens`."""
    keep_right: int = Field(1, ge=0)
    """Most right responses stored per site, from which `warmup.thoughts: sampled` can learn."""


class CurriculumPhase(Config):
    """Until `until_step` (exclusive), only sites that match `where` are drawn."""

    until_step: int = Field(gt=0)
    """First step after this phase. Steps count from 0."""
    where: Expression
    """SQL over the site columns, on top of `sites.where`."""


class QuestionsConfig(Config):
    """Questions with known answers, for `rpt finetune`."""

    locations: ClassVar[frozenset[str]] = frozenset({"source", "held_out_source", "format", "revision"})

    source: str
    """As `corpus.source`: a path, a glob, a folder, `hf://datasets/owner/name[/file]`, any fsspec URL."""
    held_out_source: str | None = None
    """Source of the held-out questions, if they are in files of their own; `held_out` is then ignored."""
    format: Literal["auto", "jsonl", "parquet", "csv", "json"] = "auto"
    """Format of both sources; `auto` goes by the file name."""
    revision: str | None = None
    """Hub revision of both sources (a commit hash: a branch name is not reproducible)."""
    question: str = "{question}"
    """Template of the question over the record's columns."""
    answer: str = "{answer}"
    """Template of the answer over the record's columns."""
    answer_after: str | None = None
    """The final answer is the text after the last occurrence of this in the rendered `answer`; in GSM8K `####`."""
    held_out: ValidationConfig = ValidationConfig(fraction=0.1)
    """Which questions are held out."""
    max_question_tokens: int = Field(1024, gt=0)
    """Most policy tokens per question; longer questions are left out."""
    seed: int = 0
    """Seed of the hash that assigns questions to the held-out split."""
