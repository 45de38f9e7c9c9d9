"""The side of vLLM in `benchmarks.sampler`: runs in vLLM's environment, which has none of this project's packages.

Reads lines of JSON, [prompts, seeds], and prints the seconds that all tokens of the responses took.
"""

from __future__ import annotations

import json
import sys
import time

from pipeline.grpo.rollout.vllm_engine import VllmEngine
from pipeline.grpo.types import SamplingRequest


def main(policy: str, dtype: str, longest: int, group: int, new: int, rows: int) -> None:
    """Answer every line of standard input.

    Args:
        policy: folder of the model.
        dtype: "float32" or "bfloat16".
        longest: maximum tokens of a prompt.
        group: responses per prompt.
        new: maximum tokens of a response.
        rows: responses of a request.
    """
    engine = VllmEngine(policy, dtype, longest + new, rows)
    for line in sys.stdin:
        prompts, seeds = json.loads(line)
        begin = time.perf_counter()
        made = engine.generate(SamplingRequest(prompts, group, 1.0, new, seeds), [])
        seconds = time.perf_counter() - begin
        tokens = sum(len(ids) for ids, *_ in made)  # a few of its responses end by themselves
        print(f"seconds {seconds * rows * new / tokens}", flush=True)


if __name__ == "__main__":
    policy, dtype, *numbers = sys.argv[1:]
    main(policy, dtype, *map(int, numbers))
