"""The policy under DeepSpeed: build, update, hand out weights, save, load, export. The only file that knows DeepSpeed.

Order matters. The process group comes first: without it ZeRO-3 would silently partition over one rank. Then the model,
its weights read while they are partitioned (`HfDeepSpeedConfig`), and only then the engine. A model *constructed* under
ZeRO-3 would be initialised on empty tensors, so what was loaded is compared with a plain copy (`verify`).
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils.logging import disable_progress_bar

from pipeline.core.config import OptimizerConfig, PolicyConfig
from pipeline.core.errors import UserError
from pipeline.grpo import ranks
from pipeline.grpo.batch import batch_of, idle_batch
from pipeline.grpo.logprobs import PolicyLogprobs
from pipeline.grpo.loss import Loss
from pipeline.grpo.topology import zero_stage
from pipeline.grpo.types import Batch, Group, Response

Engine = Any
"""`deepspeed.DeepSpeedEngine`, which is not typed. Its module is a `PolicyLogprobs`."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    loss: float
    """Mean over the tokens of all ranks."""
    tokens: int
    """Tokens of responses it learned from, on all ranks."""
    grad_norm: float | None
    """Before clipping; None where DeepSpeed does not tell (fp32 without ZeRO)."""
    logprob_gap: float
    """Mean |trainer − sampler| of the log-probabilities (nats): how far the two disagree about the same weights."""

    def metrics(self) -> dict[str, float]:
        """By the names they are logged under."""
        known = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        return {"loss": self.loss, "tokens/trained": self.tokens, **known, "sampler/logprob_gap": self.logprob_gap}


def start() -> None:
    """Start the process group, as the environment says (`ranks.prepare_environment`)."""
    deepspeed_logger.setLevel(logging.WARNING)
    disable_progress_bar()
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)  # DeepSpeed calls them
    # DeepSpeed would compile an extension for all-reduces over shared memory: half a minute and a C++ compiler for
    # what takes a CPU run no measurable part of a step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ranks.start(timedelta(hours=2))  # ranks wait for each other's rollouts, which can take long
    deepspeed.init_distributed(verbose=False)  # takes the group that is there


def close(engine: Engine) -> None:
    """Release the engine and leave the process group."""
    engine.destroy()
    torch.distributed.destroy_process_group()


def build(
    folder: Path, policy: PolicyConfig, optimizer: OptimizerConfig, temperature: float, topology: dict[str, Any]
) -> Engine:
    """The policy, its optimizer and its partitions. Every rank must call it, after `start`.

    Args:
        folder: a `transformers` folder.
        policy: precision and checkpointing.
        optimizer: AdamW's settings and the norm to clip at.
        temperature: of the rollouts; log-probabilities are taken at it.
        topology: what `read_topology` read.
    """
    config = topology | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step is as many backwards as its micro-batches
        "gradient_clipping": optimizer.clip_norm,
        "bf16": {"enabled": policy.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
    }
    with _partitioned_loading(config):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, policy.dtype))
    model.train()
    _disable_dropout(model)
    if policy.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = PolicyLogprobs(model, temperature, share_contexts=not policy.gradient_checkpointing)
    adamw = torch.optim.AdamW(
        module.parameters(), lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
    )
    engine, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=config)
    return engine


def update(engine: Engine, batches: Sequence[Batch], loss: Loss, clip: float, lr: float) -> Update:
    """One optimizer step on the micro-batches of all ranks; none if no rank has any. Every rank must call it.

    Gradients are those of the *mean over all tokens of all ranks*: each backward is of a sum divided by the global
    count. Every rank runs the same number of backwards, for ZeRO-3 gathers weights in each.

    Raises:
        UserError: the loss or the gradient is not finite; weights stay as they were if it is the loss.
    """
    rounds = ranks.largest(len(batches))
    if rounds == 0:
        return Update(loss=0.0, tokens=0, grad_norm=0.0, logprob_gap=0.0)
    (tokens,) = ranks.total(sum(int(batch.mask_RT.sum()) for batch in batches))
    loss_sum = gap_sum = 0.0
    for i in range(rounds):
        batch = (batches[i] if i < len(batches) else idle_batch()).to(engine.device)
        logprobs_RT = engine(batch)
        old_logprobs_RT = logprobs_RT.detach()  # one update on what this policy sampled: the ratio is 1
        summed = loss(logprobs_RT, old_logprobs_RT, batch.advantages_R, batch.mask_RT, clip)
        # DeepSpeed averages gradients over ranks; the sum over ranks is meant.
        engine.backward(summed / tokens * ranks.world_size())
        loss_sum += float(summed.detach())
        gap_RT = (old_logprobs_RT - batch.sampled_logprobs_RT).abs()
        gap_sum += float(gap_RT.masked_fill(~batch.mask_RT, 0.0).sum())
    loss_sum, gap_sum = ranks.total(loss_sum, gap_sum)
    _must_be_finite("loss", loss_sum)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    engine.step()
    norm = engine.get_global_grad_norm()
    _must_be_finite("gradient", float(norm or 0.0))
    return Update(loss_sum / tokens, int(tokens), None if norm is None else float(norm), gap_sum / tokens)


def gathered_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Names and full tensors of the policy, one at a time. Every rank must iterate to the end.

    A tensor is valid until the next one is asked for: copy what you keep.
    """
    for name, parameter in engine.module.model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            yield name, parameter.data


@torch.no_grad()
def verify(engine: Engine, reference: PreTrainedModel, prompt: Sequence[int], temperature: float) -> float:
    """Compare the engine with a plain copy of the policy: every weight, then log-probabilities of a prompt's tokens.

    Every rank must call it. Returns the mean difference of the log-probabilities (nats).

    Raises:
        AssertionError: weights differ: they were not loaded, or not handed over.
        UserError: the logits of this architecture are not its output head's product.
    """
    expected = dict(reference.named_parameters())
    wrong = [name for name, tensor in gathered_weights(engine) if not torch.equal(tensor, expected[name])]
    if wrong:
        raise AssertionError(f"{len(wrong)} of the policy's weights are not what was loaded: {', '.join(wrong[:5])}")
    cut = max(1, len(prompt) // 2)
    response = Response(tuple(prompt[cut:]), b"", True, (0.0,) * (len(prompt) - cut))
    own_T = engine(batch_of([Group(tuple(prompt[:cut]), (response,), (1.0,))]).to(engine.device))[0]
    ids = torch.tensor([list(prompt)], device=engine.device)
    logits_TV = reference(input_ids=ids, use_cache=False).logits[0, cut - 1 : -1].float() / temperature
    plain_T = logits_TV.log_softmax(dim=-1).gather(1, ids[0, cut:, None])[:, 0]
    gap = float((own_T - plain_T).abs().mean())
    if gap > (0.2 if reference.dtype == torch.bfloat16 else 1e-3):
        raise UserError(
            f"log-probabilities of the policy are off by {gap:.3g} nats",
            where=type(reference).__name__,
            mend="its logits are not a plain product of its output head (soft-capping, scaling): choose another policy",
        )
    return gap


def save(engine: Engine, folder: Path, state: dict[str, Any]) -> None:
    """Write weights, optimizer and `state` of every rank into `folder`. Every rank must call it."""
    engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state={"run": state}, save_latest=False)


def load(engine: Engine, folder: Path) -> dict[str, Any]:
    """Undo `save`: weights and optimizer into the engine. Returns this rank's `state`."""
    path, state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise UserError("the checkpoint cannot be read", where=folder, mend="delete it to resume from an earlier one")
    return dict(state["run"])


def export(engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A `transformers` folder of the policy as it is now; whole or not there. Every rank must call it."""
    main = ranks.rank() == 0
    weights = {name: tensor.detach().cpu().clone() for name, tensor in gathered_weights(engine) if main}
    if main:
        temporary = folder.with_name(f".{folder.name}")
        for old in (temporary, folder):
            shutil.rmtree(old, ignore_errors=True)
        model: PreTrainedModel = engine.module.model
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    ranks.barrier()


@contextmanager
def _partitioned_loading(config: dict[str, Any]) -> Iterator[None]:
    """`from_pretrained` within partitions each weight as it is read, if the topology is ZeRO-3; not beyond."""
    alive = HfDeepSpeedConfig(config) if zero_stage(config) == 3 else None
    try:
        yield
    finally:
        del alive  # `transformers` holds a weak reference: other models are loaded whole again


def _disable_dropout(model: nn.Module) -> None:
    """The policy that learns must be the one that sampled."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _must_be_finite(what: str, value: float) -> None:
    if not torch.isfinite(torch.tensor(value)):
        raise UserError(
            f"the {what} is not finite ({value})", mend="lower `optimizer.lr`; the last checkpoint can be resumed from"
        )
