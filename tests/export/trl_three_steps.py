"""Run in an environment with TRL: three steps of GRPOTrainer on an export. Prints every response and its reward.

Arguments: the export's folder, the policy's folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any


def main(folder: str, policy: str) -> None:
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    sys.path.insert(0, folder)
    from rpt_reward import next_token_reward

    seen = []

    def watched(completion_ids: list[list[int]], site_id: list[str], **columns: Any) -> list[float]:
        rewards = next_token_reward(completion_ids=completion_ids, **columns)
        seen.extend(
            {"site_id": site, "ids": ids, "reward": reward}
            for site, ids, reward in zip(site_id, completion_ids, rewards, strict=True)
        )
        return rewards

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            max_steps=3,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=40,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            model_init_kwargs={"dtype": "float32"},
        )
        dataset = load_dataset("parquet", data_files=f"{folder}/train.parquet", split="train", cache_dir=out)
        GRPOTrainer(model=policy, reward_funcs=watched, args=config, train_dataset=dataset).train()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
