"""One rank in bfloat16, as GPUs train: `python -m tests.grpo.policy.bfloat16_worker FOLDER TOPOLOGY OUT`.

What everything of an update adds to it, what sampler and trainer make of the new weights, and a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pipeline.config.recipe import PolicyConfig
from pipeline.config.training import OptimizerConfig
from pipeline.grpo.policy import distributed

distributed.prepare_environment()

from pipeline.grpo.model.batch import micro_batches, text_batches  # noqa: E402
from pipeline.grpo.policy import engine as ds  # noqa: E402
from pipeline.grpo.policy.agreement import sampler_gap, verify  # noqa: E402
from pipeline.grpo.policy.deepspeed_config import read_config  # noqa: E402
from pipeline.grpo.policy.update import MiniBatch, update  # noqa: E402
from pipeline.grpo.rollout.sampler import Sampler  # noqa: E402
from pipeline.grpo.types import SamplingRequest  # noqa: E402
from tests.grpo.models import TEMPERATURE, some_groups  # noqa: E402
from tests.grpo.policy.engine_worker import EVERYTHING, MICRO_BATCH, PROMPTS, TEXTS  # noqa: E402
from tests.grpo.rollout.test_sampler import TOKENIZER  # noqa: E402


def main(folder: Path, topology: Path, out: Path) -> None:
    torch.set_num_threads(1)
    ds.start()
    policy, layout = PolicyConfig(model=str(folder), dtype="bfloat16"), read_config(topology)
    engine = ds.build(folder, policy, OptimizerConfig(weight_decay=0.0, clip_norm=1e9), layout)
    sampler = Sampler.load(folder, TOKENIZER, dtype=torch.bfloat16)
    gaps = [verify(engine, ds.gathered_weights(engine), sampler.model, list(range(3, 20)), TEMPERATURE)]
    batches, text = micro_batches(some_groups(5, 3), MICRO_BATCH), text_batches(TEXTS, 30)
    reference = ds.build_reference(engine, folder, policy, layout)
    done = update(engine, [MiniBatch(batches, text)], EVERYTHING, 1e-2, reference=reference)
    before = {name: tensor.clone() for name, tensor in ds.gathered_weights(engine)}
    sampler.load_weights(before.items())
    (response,) = sampler.sample(SamplingRequest(PROMPTS[:1], 1, 1.0, 8, [1]))
    gaps += [verify(engine, ds.gathered_weights(engine), sampler.model, list(range(3, 20)), TEMPERATURE)]
    gaps += [sampler_gap(engine, response, PROMPTS[0], 1.0)]
    ds.save(engine, out / "step-1", {"own": 1})
    update(engine, [MiniBatch(batches)], EVERYTHING, 1e-2, reference=reference)
    state = ds.load(engine, out / "step-1")
    same = all(torch.equal(tensor, before[name]) for name, tensor in ds.gathered_weights(engine))
    moved = sum(
        not torch.equal(before[name], p)
        for name, p in Sampler.load(folder, TOKENIZER, dtype=torch.bfloat16).model.named_parameters()
    )
    seen = {"gaps": gaps, "update": done.metrics(), "state": state, "same": same, "moved": moved}
    seen["dtypes"] = sorted({str(tensor.dtype) for tensor in before.values()})
    (out / "seen.json").write_text(json.dumps(seen))
    ds.close(engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
