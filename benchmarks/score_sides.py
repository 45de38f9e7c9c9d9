"""The sides that `benchmarks.score` compares, each in a process that scores the documents per line of its input.

lm-eval and vLLM run in environments of their own: imports are where they are used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

VOCABULARY = 151_936
Run = Callable[[list[list[int]]], Any]
"""Scores documents, which are lists of token ids."""


def serve(arguments: argparse.Namespace) -> None:
    """Run a side's process: load, then take a turn for every line of standard input."""
    documents = json.loads((arguments.folder / "ids.json").read_text())
    run = SIDES[arguments.side](arguments)
    run(documents[:1])
    print("RPT {}", flush=True)
    for line in sys.stdin:
        begin = clock(arguments)
        if int(line):
            run(documents * int(line))
        print("RPT " + json.dumps({"seconds": clock(arguments) - begin, "peak": peak_memory(arguments)}), flush=True)


def clock(arguments: argparse.Namespace) -> float:
    """Seconds of this process, or of a GPU that has done all it was asked for."""
    if arguments.device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.monotonic()


def peak_memory(arguments: argparse.Namespace) -> float:
    """Return the peak bytes so far, of this process and its children, or of the GPU's tensors."""
    if arguments.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def rpt(arguments: argparse.Namespace) -> Run:
    """Return the side that calls the functions of `rpt score`."""
    import numpy as np

    from pipeline.config.manifest import ScoreConfig
    from pipeline.scoring.documents import score_documents
    from pipeline.scoring.proxy import as_proxy

    proxy = as_proxy(load(arguments), None)
    config = ScoreConfig(batch_tokens=arguments.batch_tokens)
    return lambda documents: score_documents(
        proxy, [np.array(ids, dtype=np.int32) for ids in documents], [""] * len(documents), config
    )


def forward(arguments: argparse.Namespace) -> Run:
    """`model(ids).logits` on the batches that `rpt` makes."""
    import torch

    from pipeline.config.manifest import ScoreConfig
    from pipeline.scoring.windows import batches, plan_windows, windows

    model = load(arguments)
    plan = plan_windows(ScoreConfig(), None, bos=False)

    @torch.inference_mode()
    def run(documents: list[list[int]]) -> None:
        todo = [window for d, ids in enumerate(documents) for window in windows(len(ids), plan, d)]
        for batch in batches(todo, arguments.batch_tokens, bos=False):
            rows = [documents[w.document][w.start : w.stop] for w in batch]
            width = max(map(len, rows))
            ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=arguments.device)
            model(input_ids=ids_BT, use_cache=False)

    return run


def single(arguments: argparse.Namespace) -> Run:
    """`model(ids).logits`, one document at a time."""
    import torch

    model = load(arguments)

    @torch.inference_mode()
    def run(documents: list[list[int]]) -> None:
        for ids in documents:
            model(input_ids=torch.tensor([ids], device=arguments.device), use_cache=False)

    return run


def usual(arguments: argparse.Namespace) -> Run:
    """Return the side with the loop most people write."""
    import torch

    model = load(arguments)

    @torch.inference_mode()
    def run(documents: list[list[int]]) -> None:
        for begin in range(0, len(documents), 8):
            rows = documents[begin : begin + 8]
            width = max(map(len, rows))
            ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
            mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
            logprobs_BTV = logits_BTV.float().log_softmax(-1)
            logprobs_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None])
            top_BTK = logprobs_BTV.topk(16, dim=-1).values.log_softmax(-1)
            -(top_BTK.exp() * top_BTK).sum(-1)

    return run


def load(arguments: argparse.Namespace) -> Any:
    """The model, as `load_proxy` loads it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.folder / "model", dtype=getattr(torch, arguments.dtype), local_files_only=True
    )
    return model.to(arguments.device).eval()


def lm_eval(arguments: argparse.Namespace) -> Run:
    """lm-eval's rolling log-likelihood: nll alone, of the same ids (`encode` is given them as text)."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.folder / "model", dtype=getattr(torch, arguments.dtype), local_files_only=True
    ).to(arguments.device)
    side = HFLM(
        pretrained=model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=numbers(), eos_token="0"),
        backend="causal", max_length=4096, batch_size=8, add_bos_token=False,
    )  # fmt: skip
    return lambda documents: side.loglikelihood_rolling(
        [
            Instance("loglikelihood_rolling", {}, (" ".join(map(str, ids)),), n)
            for n, ids in enumerate(documents)
        ],
        disable_tqdm=True,
    )  # fmt: skip


def numbers() -> Any:
    """A tokenizer whose text is the ids in figures."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def vllm(arguments: argparse.Namespace) -> Run:
    """Return the side with vLLM's log-probabilities of prompts."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(arguments.folder / "model"), skip_tokenizer_init=True, dtype=arguments.dtype, max_model_len=8192,
        enforce_eager=True, max_num_batched_tokens=8192, enable_prefix_caching=False, gpu_memory_utilization=0.3,
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=16, detokenize=False)
    return lambda documents: engine.generate([{"prompt_token_ids": ids} for ids in documents], sampling, use_tqdm=False)


def in_float32(side: Callable[[argparse.Namespace], Run]) -> Callable[[argparse.Namespace], Run]:
    """Return a side that computes in float32 whatever the number format of the others."""
    return lambda arguments: side(argparse.Namespace(**vars(arguments) | {"dtype": "float32"}))


SIDES: Mapping[str, Callable[[argparse.Namespace], Run]] = {
    "rpt": rpt,
    "forward": forward,
    "single": single,
    "usual": usual,
    "lm-eval": lm_eval,
    "vllm": vllm,
    "rpt32": in_float32(rpt),
    "single32": in_float32(single),
    "usual32": in_float32(usual),
}
"""By name; a side loads what it needs and returns the function that is measured."""
