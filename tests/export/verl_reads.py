"""Run in an environment with verl: its dataset class reads an export, its loader finds the reward. Prints what it got.

Arguments: the export's folder, the policy's folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from base64 import b64decode
from typing import Any


def main(folder: str, policy: str) -> None:
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset

    function = {"path": f"{folder}/rpt_reward.py", "name": "compute_score", "reward_kwargs": {}}
    reward = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
    assert reward is not None

    def scored(row: dict[str, Any], answer: str) -> Any:
        return reward(
            data_source=row["data_source"],
            solution_str=answer,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )

    seen = []
    with tempfile.TemporaryDirectory() as cache:
        settings = OmegaConf.create({"max_prompt_length": 512, "cache_dir": cache})
        dataset = RLHFDataset([f"{folder}/train.parquet"], AutoTokenizer.from_pretrained(policy), settings)
        for row in (dataset[i] for i in range(len(dataset))):
            truth = json.loads(row["reward_model"]["ground_truth"])
            whole = b64decode(truth["continuation"]).decode()
            seen.append(
                {
                    "raw_prompt": row["raw_prompt"],
                    "index": row["index"],
                    "right": scored(row, f"A thought.</think>\\boxed{{{whole}}}"),
                    "wrong": scored(row, f"No thought ends here. \\boxed{{{whole}}}"),
                }
            )
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
