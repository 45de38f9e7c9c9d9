"""Run in an environment with OpenRLHF: its dataset class reads an export, its executor rewards responses to it.

Arguments: the export's folder, the policy's folder. Prints, for every row, what came of three responses: right, right
but cut at the limit, and without a thought. The engine that would sample them is scripted; all else is OpenRLHF's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64decode
from types import SimpleNamespace
from typing import Any


class Strategy:
    """What the dataset asks of a training strategy: its arguments, and a place to print to."""

    args = SimpleNamespace(
        data=SimpleNamespace(input_key="input", label_key="label", apply_chat_template=True), use_ms=False
    )

    def is_rank_0(self) -> bool:
        return False

    def print(self, *_: object) -> None:
        pass


class Scripted:
    """An engine that answers as it is told."""

    def __init__(self, token_ids: list[int], finish_reason: str) -> None:
        self.output = SimpleNamespace(token_ids=token_ids, finish_reason=finish_reason, logprobs=None)

    async def generate(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(outputs=[self.output])


def main(folder: str, policy: str) -> None:
    from openrlhf.datasets import PromptDataset
    from openrlhf.datasets.utils import blending_datasets
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    rows = blending_datasets(f"{folder}/train.jsonl", strategy=Strategy(), dataset_split="train")
    dataset = PromptDataset(rows, tokenizer, Strategy())
    executor = SingleTurnAgentExecutor([f"{folder}/rpt_reward.py"])
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)

    def rewarded(prompt: str, label: str, answer: str, *, finished: bool = True) -> dict[str, Any]:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * finished
        engine = Scripted(ids, "stop" if finished else "length")
        told = asyncio.run(executor.execute(prompt, label, sampling, 1024, tokenizer, engine))
        return {key: float(told[key]) for key in ("reward", "scores")}

    seen = []
    for source, prompt, label, _ in (dataset[i] for i in range(len(dataset))):
        whole = b64decode(json.loads(label)["continuation"]).decode()
        right = f"A thought.</think>\\boxed{{{whole}}}"
        seen.append(
            {
                "prompt": prompt,
                "source": source,
                "right": rewarded(prompt, label, right),
                "cut": rewarded(prompt, label, right, finished=False),
                "wrong": rewarded(prompt, label, f"No thought ends here. \\boxed{{{whole}}}"),
            }
        )
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
