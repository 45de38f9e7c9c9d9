"""Compare one GRPO step with that of TRL's `GRPOTrainer`: rollout, update, hand-over of weights.

Both sides train the same policy on the same prompts with the same group size, new tokens per response (exactly),
rewards, loss (token mean), optimizer and no KL. Each runs in a process of its own, is warmed up, and takes its steps in
turn with the other's (on a GPU, whose memory they would share, one side after the other): medians. TRL wants an
environment of its own: `pip install trl==1.16.0 torch==2.13.0`.

Every group has unequal rewards, the most work there can be. With --run, the folder of a run, the work is measured a
second time with that run's share of such groups: the others have no gradient, and ours leaves them out of the update.
Each side starts as its users start it: `rpt train` sets the C allocator to keep freed memory; `--same-allocator` sets
it for TRL too. TRL's settings are the fastest we know of: `--trl-own checkpointing bf16` leaves it its own defaults (to
compute activations anew in the backward, and to compute in bf16, which many CPUs can only emulate), `--trl-rows 8` too.

    python -m benchmarks.grpo_step --trl-python /path/to/env/bin/python [--contexts 64 512 2048] [--run runs/demo]
    python -m benchmarks.grpo_step --trl-python /path/to/env/bin/python --device cuda --shape 1.5B
    python -m benchmarks.grpo_step --trl-python /path/to/env/bin/python --policy FOLDER --dtype bfloat16 --contexts 256

On a GPU the policy has the shape of Qwen2.5-0.5B or 1.5B and random weights, in bf16 on both sides (ours keeps a master
copy in fp32, too), 1,024-token contexts and 256 new tokens.

Parts: rollout; of the update its forward (log-probabilities and loss), backward and optimizer; hand-over of the weights
to the sampler, which TRL's generation does not need; the rest of the step.

Last line: JSON with seconds of the step and of its parts, processor seconds of all threads (which others on the machine
disturb less), tokens/s, peak memory (of the process, or the GPU's tensors), ratios, bars and whether they hold. Without
--trl-python the other side is not measured, and no bar against it is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.grpo_sides import ours, trl
from benchmarks.score import SHAPES, save_model
from pipeline.grpo.run.metrics import read_metrics

ROOT = Path(__file__).parent.parent
BARS: dict[str, dict[int, dict[str, float]]] = {
    "cpu": {64: {"ratio": 5.0, "memory_ratio": 1.0}, 512: {"ratio": 12.0, "memory_ratio": 1.0}},
    "cuda": {1024: {"ratio": 3.0}},
}
"""The least with the demo's policy or a shape, by tokens of context.

Ratios are TRL's over ours, of seconds and of peak memory, which must be lower.
"""
OF_TOKENS = 0.8
"""The least with another policy: this share of the ratio of the tokens that the two sides pass through the model."""
DEMO = ROOT / "demo" / "policy"
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtype": "float32", "contexts": [64, 512], "new": 48, "micro_batch_tokens": 3072, "trl_rows": 32},
    "cuda": {
        "shape": "0.5B", "dtype": "bfloat16", "contexts": [1024], "new": 256,
        "micro_batch_tokens": 12288, "trl_rows": 8,
    },
}  # fmt: skip
"""Micro-batches of ours and of TRL (rows) that take about as much memory."""
TRL_OWN = "checkpointing", "bf16"
"""The default settings of TRL 1.16."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=tuple(BARS), default="cpu", help="it settles the six that follow")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="of a policy with random weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--new", type=int, help="tokens of a response")
    parser.add_argument("--micro-batch-tokens", type=int, help="of ours")
    parser.add_argument("--trl-rows", type=int, help="rows of TRL's micro-batches")
    parser.add_argument("--policy", type=Path, default=DEMO, help="without --shape")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--trl-own", choices=TRL_OWN, nargs="*", default=[], help="its defaults to leave: see above")
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="measured on each side, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--deepspeed-config", type=Path, help="of ours; by default ZeRO-3, as `rpt train` has it")
    parser.add_argument("--trl-python", help="interpreter of an environment with TRL")
    parser.add_argument("--run", type=Path, help="a run whose share of groups with unequal rewards is measured too")
    parser.add_argument("--informative", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--same-allocator", action="store_true", help="TRL with the allocator's settings of ours")
    parser.add_argument("--worker", choices=["ours", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, value in DEFAULTS[arguments.device].items():
        setattr(arguments, name, getattr(arguments, name) or value)
    if arguments.worker:
        {"ours": ours, "trl": trl}[arguments.worker](arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shape:
            arguments.policy = random_policy(Path(folder), arguments)
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Both sides at every length of contexts, and what holds."""
    results, judged, shares = {}, {}, {"every group": 1.0}
    least_of: dict[str, dict[str, float]] = {}
    if arguments.run:
        shares["as in the run"] = informative_share(arguments.run)
    for context in arguments.contexts:
        for work, arguments.informative in shares.items():
            found = measured(arguments, context)
            results.setdefault(str(context), {})[work] = found
            print(f"context {context}, {work}: {json.dumps(found)}", flush=True)
        found, bars = results[str(context)]["every group"], bars_of(arguments, context)
        least_of[str(context)] = bars
        found = found["ours"] | found
        for name in bars.keys() & found.keys():
            least = bars[name]
            judged[f"{context}: {name}"] = found[name] > least if name == "memory_ratio" else found[name] >= least
    names = (
        "device", "shape", "layers", "dtype", "sites", "group", "new", "micro_batch_tokens", "trl_rows",
        "trl_own", "same_allocator", "threads", "steps", "deepspeed_config",
    )  # fmt: skip
    work = {name: getattr(arguments, name) for name in names} | {"informative": shares}
    if not arguments.trl_python:
        print("TRL was not measured: give --trl-python")
    work["deepspeed_config"] = arguments.deepspeed_config and arguments.deepspeed_config.name
    report = {"work": work, "contexts": results, "bars": least_of, "judged": judged}
    print(json.dumps(report | {"holds": all(judged.values()) if judged else None}))


def bars_of(arguments: argparse.Namespace, context: int) -> dict[str, float]:
    """Return the least ratios with contexts of so many tokens.

    TRL passes a context through the model once for each of its responses, ours once for all of them.
    """
    if arguments.shape or arguments.policy == DEMO:
        return BARS[arguments.device].get(context, {})
    responses = arguments.group * arguments.new
    return {"ratio": round(OF_TOKENS * (arguments.group * context + responses) / (context + responses), 2)}


def random_policy(folder: Path, arguments: argparse.Namespace) -> Path:
    """A folder with a model of the shape, and the demo policy's tokenizer: what the tokens say does not matter."""
    arguments.layers = arguments.layers or SHAPES[arguments.shape]["num_hidden_layers"]
    save_model(folder, arguments)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(ROOT / "demo" / "policy" / name, folder / name)
    return folder


def informative_share(run: Path) -> float:
    """Return the share of a run's groups that had a gradient."""
    rows = read_metrics(run / "metrics.jsonl")
    sampled, trained = (sum(row.get(f"groups/{name}", 0) for row in rows) for name in ("sampled", "trained"))
    return round(trained / sampled, 4)


def measured(arguments: argparse.Namespace, context: int) -> dict[str, Any]:
    """Both sides at one length of contexts, and their ratios."""
    pythons = {"ours": sys.executable} | ({"trl": arguments.trl_python} if arguments.trl_python else {})
    together = [list(pythons)] if arguments.device == "cpu" else [[name] for name in pythons]
    found: dict[str, Any] = {}
    for names in together:
        sides = {name: Side(name, pythons[name], arguments, context) for name in names}
        for _ in range(arguments.steps + 1):
            for side in sides.values():
                side.step()
        tokens = arguments.sites * arguments.group * arguments.new
        found |= {name: side.finish(tokens) for name, side in sides.items()}
    if "trl" in found:
        ours, theirs = found["ours"], found["trl"]
        for name, key in {
            "ratio": "seconds",
            "processor_ratio": "processor_seconds",
            "memory_ratio": "peak_mib",
        }.items():
            found[name] = round(theirs[key] / ours[key], 2)
        both = ours["parts"].keys() & theirs["parts"].keys()
        found["part_ratios"] = {name: round(theirs["parts"][name] / ours["parts"][name], 2) for name in sorted(both)}
    return found


class Side:
    """A worker process that takes a step on request, and reports its parts."""

    def __init__(self, name: str, python: str, arguments: argparse.Namespace, context: int) -> None:
        command = [python, "-m", "benchmarks.grpo_step", "--worker", name, "--contexts", str(context)]
        for key in (
            "device", "dtype", "policy", "sites", "group", "new", "steps", "threads", "micro_batch_tokens", "trl_rows",
            "informative",
        ):  # fmt: skip
            command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
        if arguments.trl_own:
            command += ["--trl-own", *arguments.trl_own]
        if arguments.deepspeed_config:
            command += ["--deepspeed-config", str(arguments.deepspeed_config)]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(arguments.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if arguments.device == "cuda" else "",
        }
        if name == "ours" or arguments.same_allocator:  # as `rpt train` sets them
            environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reports: list[dict[str, float]] = []

    def step(self) -> None:
        """Let the worker take one step."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            sys.exit(f"the worker ended:\n{self._errors.read()[-4000:]}")
        self._reports.append(json.loads(line))

    def finish(self, tokens: int) -> dict[str, Any]:
        """Medians over the steps after the first; seconds by part."""
        self._process.communicate("")
        measured = self._reports[1:]
        median = {key: round(statistics.median(report[key] for report in measured), 4) for key in measured[0]}
        seconds, processor, peak = (median.pop(key) for key in ("step", "processor", "peak_mib"))
        speed = round(tokens / seconds)
        return {
            "seconds": seconds,
            "processor_seconds": processor,
            "parts": median,
            "tokens/s": speed,
            "peak_mib": round(peak),
        }


if __name__ == "__main__":
    main()
