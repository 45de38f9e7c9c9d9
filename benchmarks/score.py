"""Compare scoring with the bare forward pass and with the usual ways: tokens per second and peak memory.

On a CPU seconds are processor time (user and system), on one thread by default, so that other load on the machine
matters little. On a GPU they are wall time, and memory is the GPU's. Sides, all on the same
documents, token ids, weights and threads, each in a process of its own, taking turns; medians of the turns, and of the
turns' ratios:

- `rpt`: `score_documents`, top-16 entropies, nll and rank of every position.
- `forward`: the bare forward pass of the same model with its output projection, on padded batches of as many tokens.
- `single`: the same, one document at a time (`model(ids).logits`).
- `usual`: padded batches of 8 documents in their order, full logits, `log_softmax`, `topk` (`transformers`).
- `lm-eval`: `loglikelihood_rolling` (only with `--lm-eval-python`, the interpreter of an environment with lm-eval).
- `vllm`: `prompt_logprobs=16` (only with `--vllm-python`, the interpreter of an environment with vLLM).
- `rpt32`, `single32`, `usual32`: the same in float32, if `--dtype` is another.

The model is the one in `--model`, a folder. Without it, it has the shape of Qwen2.5-0.5B or 1.5B and random weights,
saved for the run; `--layers` makes it shallower.
After its turns `rpt` scores the documents ten times over (`tenfold`), in the same process: its peak can only rise.

    python -m benchmarks.score --documents FILE --tokenizer FOLDER --tokens 3000 --repeats 2 --parts rpt forward usual
    python -m benchmarks.score --parts rpt tenfold --layers 1 --tokens 500
    python -m benchmarks.score --model FOLDER --documents FILE --dtype bfloat16 --parts rpt single rpt32 single32
    python -m benchmarks.score --device cuda          # the 1.5B shape in bf16, 400,000 tokens

Last line: JSON with seconds, tokens/s, ratios, peak memory, on a GPU whose peak is known MFU, bars and whether they
hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.score_sides import SIDES, VOCABULARY, serve
from pipeline.core.hardware import peak_flops

SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"shape": "0.5B", "dtype": "float32", "tokens": 8192, "batch_tokens": 2048},
    "cuda": {"shape": "1.5B", "dtype": "bfloat16", "tokens": 400_000, "batch_tokens": 8192},
}
TENFOLD_BARS = {"ten times the documents, time / 10": 1.05, "ten times the documents, peak memory": 1.05}
BARS: dict[str, dict[str, float]] = {
    "cpu": {
        "rpt / forward, tokens/s": 0.9,
        "rpt / usual, tokens/s": 4.0,
        "peak memory over the weights, GiB": 1.0,
        **TENFOLD_BARS,
    },
    "cuda": {"rpt / forward, tokens/s": 0.95, "rpt / usual, tokens/s": 3.0, "rpt, MFU": 0.5, **TENFOLD_BARS},
}
MODEL_BARS = {"rpt / single, tokens/s": 0.95, "rpt32 / single32, tokens/s": 0.95}
AMX_BARS = {"rpt / rpt32, tokens/s": 2.2}
"""Bars of a real model on a CPU, and those where it has AMX and `--dtype` is bfloat16."""
TENFOLD = "tenfold"
GIB = 2**30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--documents", type=Path, help="JSON lines; random ids of the same lengths without it")
    parser.add_argument("--field", nargs="+", default=["problem", "solution"])
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--device", choices=tuple(BARS), default="cpu", help="it settles the four that follow")
    parser.add_argument("--model", type=Path, help="a model's folder, instead of a shape")
    parser.add_argument("--shape", choices=tuple(SHAPES))
    parser.add_argument("--dtype")
    parser.add_argument("--tokens", type=int, help="of the documents of one repeat")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=(*SIDES, TENFOLD), default=(*SIDES, TENFOLD))
    parser.add_argument("--lm-eval-python", type=Path)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, value in DEFAULTS[arguments.device].items():
        setattr(arguments, name, getattr(arguments, name) or value)
    arguments.layers = arguments.layers or SHAPES[arguments.shape]["num_hidden_layers"]
    arguments.tokenizer = arguments.tokenizer or arguments.model
    if arguments.side:
        serve(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Save model and documents, let every side take its turns, print figures and bars."""
    pythons = {"lm-eval": arguments.lm_eval_python, "vllm": arguments.vllm_python}
    same = arguments.dtype == "float32"
    sides = [s for s in SIDES if s in arguments.parts and pythons.get(s, True) and not (same and s.endswith("32"))]
    weights = link_model(folder / "model", arguments) if arguments.model else save_model(folder / "model", arguments)
    documents = token_ids(arguments)
    (folder / "ids.json").write_text(json.dumps(documents))
    tokens = sum(map(len, documents))
    print(f"{len(documents)} documents, {tokens:,} tokens; weights {weights / GIB:.2f} GiB; sides {', '.join(sides)}")

    running = {side: start(arguments, side, pythons.get(side), folder) for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    load = []
    for _ in range(arguments.repeats):
        for side in sides:
            seconds[side].append(ask(running[side], 1)["seconds"])
            print(f"{side:>8}: {tokens / seconds[side][-1]:,.0f} tokens/s", flush=True)
        load.append(os.getloadavg()[0])
    peaks = {side: ask(process, 0)["peak"] for side, process in running.items()}

    found = {f"rpt / {side}, tokens/s": ratio(seconds[side], seconds["rpt"]) for side in sides if side != "rpt"}
    if {"rpt32", "single32"} <= {*sides}:
        found["rpt32 / single32, tokens/s"] = ratio(seconds["single32"], seconds["rpt32"])
    found["peak memory over the weights, GiB"] = round((peaks["rpt"] - weights) / GIB, 2)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    device = device_name(arguments)
    if peak := peak_flops([device]):
        width = {"float32": 4, "bfloat16": 2, "float16": 2}[arguments.dtype]
        found |= {
            f"{side}, MFU": round(2 * weights / width * tokens / value / peak, 3) for side, value in median.items()
        }
    if TENFOLD in arguments.parts:
        ten = ask(running["rpt"], 10)
        once = statistics.median([*seconds["rpt"], ask(running["rpt"], 1)["seconds"]])
        found["ten times the documents, time / 10"] = round(ten["seconds"] / once / 10, 3)
        found["ten times the documents, peak memory"] = round(ten["peak"] / peaks["rpt"], 3)
    for process in running.values():
        process.communicate()

    bars = {name: bar for name, bar in bars_of(arguments).items() if name in found}
    report = {
        "model": described(arguments),
        "device": device,
        "documents": len(documents),
        "tokens": tokens,
        "threads": arguments.threads,
        "batch_tokens": arguments.batch_tokens,
        "load": round(statistics.median(load), 1),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seconds": {side: round(value, 2) for side, value in median.items()},
        "ratios of the turns": {
            side: [round(a / b, 3) for a, b in zip(seconds[side], seconds["rpt"], strict=True)]
            for side in sides
            if side != "rpt"
        },
        "tokens/s": {side: round(tokens / value, 1) for side, value in median.items()},
        "peak GiB": {side: round(value / GIB, 2) for side, value in peaks.items()},
        "skipped": [part for part in (*SIDES, TENFOLD) if part not in {*sides, TENFOLD} & {*arguments.parts}],
        "found": found,
        "bars": bars,
        "holds": {
            name: found[name] >= bar if name.startswith("rpt") else found[name] <= bar for name, bar in bars.items()
        },
    }
    print(json.dumps(report))


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median of the turns' ratios: both sides of a turn ran under about the same load."""
    return round(statistics.median(a / b for a, b in zip(slower, faster, strict=True)), 3)


def bars_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the least ratios and the most memory, by name."""
    if not arguments.model:
        return BARS[arguments.device]
    import torch

    return MODEL_BARS | (AMX_BARS if torch.cpu.get_capabilities().get("amx_bf16") else {})


def described(arguments: argparse.Namespace) -> str:
    """Return the model's name, or its shape and depth, with the number format."""
    if arguments.model:
        return f"{arguments.model.name}, {arguments.dtype}"
    whole = SHAPES[arguments.shape]["num_hidden_layers"]
    return f"Qwen2.5-{arguments.shape}, random weights, {arguments.layers} of {whole} layers, {arguments.dtype}"


def device_name(arguments: argparse.Namespace) -> str:
    """Return the name of the device, as `hardware.PEAK_FLOPS` spells it."""
    if arguments.device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()


def link_model(folder: Path, arguments: argparse.Namespace) -> int:
    """Link to the model's folder, and return the bytes that its weights have in memory."""
    from pipeline.core.model_files import count_weights

    folder.symlink_to(arguments.model.absolute())
    return count_weights(arguments.model) * (4 if arguments.dtype == "float32" else 2)


def save_model(folder: Path, arguments: argparse.Namespace) -> int:
    """Write config and random weights; returns the bytes of the weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        dtype=arguments.dtype,
        **SHAPES[arguments.shape] | {"num_hidden_layers": arguments.layers},
    )
    model = Qwen2ForCausalLM(shape).to(getattr(torch, arguments.dtype))
    model.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def token_ids(arguments: argparse.Namespace) -> list[list[int]]:
    """Documents of about `--tokens` tokens together, in the order of a seeded shuffle."""
    rng = random.Random(0)
    documents: list[list[int]] = []
    if arguments.documents:
        from pipeline.core.tokenizer import CorpusTokenizer

        rows = [json.loads(line) for line in arguments.documents.read_text(encoding="utf-8").splitlines()]
        texts = ["\n\n".join(row[name] for name in arguments.field) for row in rng.sample(rows, len(rows))]
        encode = CorpusTokenizer.load(arguments.tokenizer).encode
        made = (encode(text).tolist() for text in texts)
    else:
        config = json.loads((arguments.model / "config.json").read_text()) if arguments.model else {}
        vocabulary = config.get("vocab_size", VOCABULARY)
        sizes = (min(4000, 20 + int(rng.lognormvariate(6, 0.8))) for _ in iter(int, 1))
        made = ([rng.randrange(vocabulary) for _ in range(size)] for size in sizes)
    for ids in made:
        documents.append(ids)
        if sum(map(len, documents)) >= arguments.tokens:
            break
    return documents


# ------------------------------------------------------------------------------------------------- the sides


def start(arguments: argparse.Namespace, side: str, python: Path | None, folder: Path) -> subprocess.Popen[str]:
    """A side's process, loaded and warm."""
    given = sys.argv[1:]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(arguments.threads))
    process = subprocess.Popen(
        [str(python or sys.executable), "-m", "benchmarks.score", *given, "--side", side, "--folder", str(folder)],
        cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | threads,
    )  # fmt: skip
    answer(process)
    return process


def ask(process: subprocess.Popen[str], times: int) -> dict[str, float]:
    """Let a side score the documents so many times over; its seconds, and its peak memory so far."""
    assert process.stdin is not None
    print(times, file=process.stdin, flush=True)
    return answer(process)


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """The next line that is one; libraries print on the same stream."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("RPT "):
            return json.loads(line[4:])
    raise RuntimeError(f"a side has died: {process.args}")


if __name__ == "__main__":
    main()
