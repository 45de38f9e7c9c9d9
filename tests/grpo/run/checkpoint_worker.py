"""One rank of a checkpoint test: `python -m tests.grpo.run.checkpoint_worker POLICY TOPOLOGY RUN ACTION…`.

An action is `save:STEP` (one update, then a checkpoint) or `resume`; then the digest of weights and moments is printed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from pipeline.config.recipe import PolicyConfig
from pipeline.config.training import OptimizerConfig
from pipeline.grpo.policy import distributed
from pipeline.grpo.run.launch import run_to_exit

distributed.prepare_environment()

from pipeline.grpo.algorithm.loss import LOSSES, ClipRange  # noqa: E402
from pipeline.grpo.algorithm.objective import Objective  # noqa: E402
from pipeline.grpo.model.batch import micro_batches  # noqa: E402
from pipeline.grpo.policy import engine as ds  # noqa: E402
from pipeline.grpo.policy.deepspeed_config import read_config, zero_stage  # noqa: E402
from pipeline.grpo.policy.update import MiniBatch, update  # noqa: E402
from pipeline.grpo.run import checkpoint  # noqa: E402
from pipeline.grpo.run.run_folder import latest_checkpoint  # noqa: E402
from tests.grpo.models import TEMPERATURE, some_groups  # noqa: E402

OWN = {"shards": "a"}
OBJECTIVE = Objective(LOSSES["dapo"], ClipRange(0.2, 0.2), TEMPERATURE, max_new_tokens=8)


def main() -> None:
    torch.set_num_threads(1)
    folder, topology, run = (Path(word) for word in sys.argv[1:4])
    ds.start()
    read = read_config(topology)
    engine = ds.build(folder, PolicyConfig(model=str(folder), dtype="float32"), OptimizerConfig(), read)
    layout = {"zero_stage": zero_stage(read), "ranks": distributed.world_size()}
    for action in sys.argv[4:]:
        if action == "resume":
            found = latest_checkpoint(run)
            assert found
            print("resumed", checkpoint.resume(engine, found, OWN, layout)["step"])
        else:
            step = int(action.removeprefix("save:"))
            batches = micro_batches(distributed.shard(some_groups(4, 3, step)), 64)
            update(engine, [MiniBatch(batches)], OBJECTIVE, 1e-3)
            checkpoint.save(engine, run, {"step": step}, OWN, layout, keep=1)
    digest = hashlib.sha256()
    for _, tensor in ds.gathered_weights(engine):
        digest.update(tensor.numpy().tobytes())
    if distributed.rank() == 0:
        print("digest", digest.hexdigest())
    ds.close(engine)


if __name__ == "__main__":
    run_to_exit(main)
