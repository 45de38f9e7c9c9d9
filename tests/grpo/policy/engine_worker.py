"""One rank of an engine test: `python -m tests.grpo.policy.engine_worker FOLDER TOPOLOGY OUT`.

Two updates over several micro-batches with sampling in between; rank 0 writes what it saw into OUT.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.config.errors import UserError
from pipeline.config.recipe import LoraConfig, PolicyConfig
from pipeline.config.training import OptimizerConfig
from pipeline.grpo.policy import distributed

distributed.prepare_environment()

import deepspeed  # noqa: E402

from pipeline.grpo.algorithm.loss import LOSSES, ClipRange  # noqa: E402
from pipeline.grpo.algorithm.objective import Objective  # noqa: E402
from pipeline.grpo.model.batch import batch_of, consecutive_parts, micro_batches, text_batches  # noqa: E402
from pipeline.grpo.policy import engine as ds  # noqa: E402
from pipeline.grpo.policy.agreement import verify  # noqa: E402
from pipeline.grpo.policy.deepspeed_config import read_config  # noqa: E402
from pipeline.grpo.policy.update import MiniBatch, update  # noqa: E402
from pipeline.grpo.rollout.sampler import Sampler  # noqa: E402
from pipeline.grpo.types import SamplingRequest  # noqa: E402
from tests.grpo.models import EOS, TEMPERATURE, some_groups  # noqa: E402
from tests.grpo.rollout.test_sampler import TOKENIZER  # noqa: E402

LR, BETAS, MICRO_BATCH = 1e-2, (0.9, 0.95), 24  # of its tokens many a group has more
CLIP, IN_TURN_LR = (0.02, 0.05), 3e-3  # narrow, so that one update reaches both bounds
LORA = LoraConfig(rank=3, alpha=6.0, targets=["q_proj", "v_proj", "down_proj"])
OBJECTIVE = Objective(LOSSES["dapo"], ClipRange(0.2, 0.2), TEMPERATURE, max_new_tokens=8)
EVERYTHING = Objective(LOSSES["grpo"], ClipRange(0.2, 0.2), TEMPERATURE, 8, kl=0.3, entropy=0.1, next_token=0.2)
TEXTS = [list(range(4, 4 + length)) for length in (9, 5, 12)]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]


def main(folder: Path, topology: Path, out: Path, how: list[str]) -> None:
    torch.set_num_threads(1)
    ds.start()
    policy = PolicyConfig(
        model=str(folder),
        dtype="float32",
        gradient_checkpointing="checkpointing" in how,
        lora=LORA if "lora" in how else None,
    )
    # This rate is not used: each update is given its own. No clipping: the first moment after one step is then
    # (1 − β₁) times the gradient.
    optimizer = OptimizerConfig(lr=9.0, betas=BETAS, weight_decay=0.0, clip_norm=1e9)
    engine = ds.build(folder, policy, optimizer, read_config(topology))
    model = Sampler.load(folder, TOKENIZER).model
    sampler = Sampler(model, TOKENIZER, {EOS})
    seen: dict[str, Any] = {"gap": gap(engine, model), "responses": [], "updates": []}

    def sample() -> None:
        sampler.load_weights(ds.gathered_weights(engine))
        seen["responses"].append(
            [response.ids for response in sampler.sample(SamplingRequest(PROMPTS, 2, 1.0, 8, [1, 2, 3, 4]))]
        )

    sample()
    gradients = None
    for seed in (0, 1):
        batches = micro_batches(distributed.shard(some_groups(5, 3, seed)), MICRO_BATCH)
        seen["updates"].append(update(engine, [MiniBatch(batches)], OBJECTIVE, LR).metrics())
        if gradients is None:
            gradients = {name: first_moment(engine, parameter) / (1 - BETAS[0]) for name, parameter in trained(engine)}
            seen["micro_batches"] = distributed.all_gather([len(batches)])
        sample()
    seen["bytes"] = held_bytes(engine)
    nothing = update(engine, [MiniBatch()], OBJECTIVE, LR)
    seen["gap_after"] = gap(engine, model)
    weights = {name: tensor.clone() for name, tensor in ds.gathered_weights(engine)}
    with torch.no_grad():
        logprobs, _ = engine(batch_of(some_groups(5, 3)), TEMPERATURE)
    ds.export(engine, policy, folder, out / "policy")
    shared = distributed.shard(some_groups(5, 3))
    batches = micro_batches(shared, MICRO_BATCH)
    reference = ds.build_reference(engine, folder, policy, read_config(topology))
    for name, share in {"everything": 1.0, "uncertain": 0.3}.items():
        objective, text = replace(EVERYTHING, top_entropy=share), text_batches(distributed.shard(TEXTS), 30)
        seen[name] = update(engine, [MiniBatch(batches, text)], objective, 0.0, reference=reference).metrics()
    seen["in_turn"], tensors_in_turn = {}, {}
    for loss in LOSSES:
        seen["in_turn"][loss], tensors_in_turn[loss] = in_turn(engine, loss)
    endless = [replace(group, advantages=(math.inf,) * 3) for group in some_groups(2, 3)]
    try:
        update(engine, [MiniBatch([batch_of(endless)])], OBJECTIVE, LR)
    except UserError as error:
        seen["refused"] = str(error)
    if distributed.rank() == 0:
        assert nothing.tokens == 0
        tensors = {"gradients": gradients, "weights": weights, "logprobs": logprobs, "in_turn": tensors_in_turn}
        torch.save(tensors, out / "tensors.pt")
        (out / "seen.json").write_text(json.dumps(seen))
    ds.close(engine)


def gap(engine: ds.Engine, model: PreTrainedModel) -> float:
    """Between the engine's log-probabilities and those of a plain copy."""
    return verify(engine, ds.gathered_weights(engine), model, list(range(3, 20)), TEMPERATURE)


def in_turn(engine: ds.Engine, loss: str) -> tuple[dict[str, float], dict[str, dict[str, torch.Tensor]]]:
    """Two updates of one step on two mini-batches: what it measured; weights before and between, last gradient."""
    objective = Objective(LOSSES[loss], ClipRange(*CLIP), TEMPERATURE, max_new_tokens=8)
    numbered = dict(zip(distributed.shard(range(5)), distributed.shard(some_groups(5, 3)), strict=True))
    parts = [MiniBatch(micro_batches(part, MICRO_BATCH)) for part in consecutive_parts(numbered, 5, 2)]
    step, seen = engine.step, []

    def recorded_step() -> None:
        moments = {name: first_moment(engine, p).clone() for name, p in trained(engine)}
        step()
        weights = {name: tensor.clone() for name, tensor in ds.gathered_weights(engine)}
        after = {name: first_moment(engine, p) for name, p in trained(engine)}
        gradients = {name: (after[name] - BETAS[0] * moments[name]) / (1 - BETAS[0]) for name in moments}
        seen.append((weights, gradients))

    before = {name: tensor.clone() for name, tensor in ds.gathered_weights(engine)}
    engine.step = recorded_step
    try:
        metrics = update(engine, parts, objective, IN_TURN_LR).metrics()
    finally:
        engine.step = step
    (between, _), (_, gradients) = seen
    return metrics, {"before": before, "between": between, "gradients": gradients}


def trained(engine: ds.Engine) -> list[tuple[str, torch.Tensor]]:
    """Names and parameters that have gradients."""
    return [(name, p) for name, p in engine.module.model.named_parameters() if p.requires_grad]


def held_bytes(engine: ds.Engine) -> dict[str, int]:
    """What this rank's weights, gradients and optimizer take up, by DeepSpeed's own tensors."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())

    def size(tensors: Iterable[object]) -> int:
        whole = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor) and t.dim()]  # no step counters
        return sum({storage.data_ptr(): storage.nbytes() for storage in whole}.values())

    moments = size(tensor for state in optimizer.state.values() for tensor in state.values())
    if engine.zero_optimization_stage() == 0:
        weights = size(parameters)
        return {"weights": weights, "gradients": weights, "optimizer": moments}
    return {
        "weights": size(parameter.ds_tensor for parameter in parameters),
        "gradients": size([optimizer.grad_partitions_flat_buffer]),
        "optimizer": moments + size(optimizer.fp32_partitioned_groups_flat),
    }


def first_moment(engine: ds.Engine, parameter: torch.Tensor) -> torch.Tensor:
    """AdamW's, whole; without ZeRO it is where torch has it."""
    whole = deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg")
    return engine.optimizer.state[parameter]["exp_avg"] if whole is None else whole


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
