"""The built-in sampler against `transformers` `generate`: tokens a second at the same work.

Both sides get the same prompts (every site's context once a response for `generate`, which knows no groups), sample at
temperature 1 and decode exactly as many tokens; one process, interleaved, medians. The C allocator keeps freed memory,
as `rpt train` sets it: both sides gain.

    python -m benchmarks.sampler [--policy FOLDER] [--contexts 64 512] [--device cpu]

Last line: JSON with seconds, processor seconds of all threads, ratios, bars and whether they hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from pipeline.grpo.sampler import Sampler
from pipeline.scoring.tokens import CorpusTokenizer

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
BAR = 3.0
"""tokens/s of the sampler over those of `generate`."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, default=Path("demo/policy"))
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=48, help="tokens of a response")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    disable_progress_bar()
    tokens, dtype = CorpusTokenizer.load(arguments.policy), getattr(torch, arguments.dtype)
    sampler = Sampler.load(arguments.policy, tokens, dtype=dtype, device=arguments.device)
    sampler.eos_ids = frozenset()  # every response takes all its room: the work is the same
    made = arguments.sites * arguments.group * arguments.new
    results, holds = {}, []
    for context in arguments.contexts:
        rng = random.Random(context)
        prompts = [[rng.randrange(3, tokens.vocab_size) for _ in range(context)] for _ in range(arguments.sites)]
        seconds: dict[str, list[float]] = {"sampler": [], "generate": []}
        processor: dict[str, list[float]] = {"sampler": [], "generate": []}
        for repeat in range(arguments.repeats + 1):
            seeds = [rng.randrange(1 << 60) for _ in range(arguments.sites * arguments.group)]
            begin = time.perf_counter(), time.process_time()
            responses = sampler.sample(prompts, arguments.group, 1.0, arguments.new, seeds)
            middle = time.perf_counter(), time.process_time()
            assert sum(len(response.ids) for response in responses) == made
            assert generated(sampler.model, prompts, arguments.group, arguments.new) == made
            end = time.perf_counter(), time.process_time()
            for clock, into in enumerate((seconds, processor) if repeat else ()):  # the first warms up
                into["sampler"].append(middle[clock] - begin[clock])
                into["generate"].append(end[clock] - middle[clock])
        median = {side: statistics.median(values) for side, values in seconds.items()}
        speed = {side: round(made / value) for side, value in median.items()}
        ratio = round(median["generate"] / median["sampler"], 2)
        holds.append(ratio >= BAR)
        results[str(context)] = {
            "seconds": {k: round(v, 4) for k, v in median.items()},
            "tokens/s": speed,
            "ratio": ratio,
            "processor_seconds": {side: round(statistics.median(values), 4) for side, values in processor.items()},
        }
        print(f"context {context:>5}: sampler {speed['sampler']:,} tokens/s, generate {speed['generate']:,}: {ratio} x")
    work = {name: getattr(arguments, name) for name in ("sites", "group", "new", "dtype", "device")}
    print(json.dumps({"work": work, "contexts": results, "bars": {"ratio": BAR}, "holds": all(holds)}))


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
