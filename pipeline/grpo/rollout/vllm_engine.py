"""vLLM inside this process: token ids in, token ids out, weights replaced in place. The only file that imports vLLM.

It runs where vLLM is installed: in the trainer's process (colocated) or in a server
(`pipeline.grpo.rollout.vllm_server`). It tokenizes nothing and needs only torch and vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # keep the model in this process, to load weights
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

from pipeline.grpo.types import SamplingRequest

Sampled = tuple[list[int], list[float], bool]
"""One response: token ids [T], their log-probabilities [T] when sampled, and True if it ended by itself."""


class VllmEngine:
    """One model in vLLM.

    Args:
        folder: a `transformers` folder.
        dtype: "float32" or "bfloat16".
        max_tokens: maximum tokens of a prompt and its response; None means the model's maximum.
        batch_rows: responses decoded at once.
        memory_fraction: share of the accelerator's memory that vLLM can use (weights, keys and values).
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        max_tokens: int | None = None,
        batch_rows: int = 256,
        memory_fraction: float = 0.4,
    ) -> None:
        on_cpu = current_platform.is_cpu()
        self._can_sleep = not on_cpu
        self._llm = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            trust_remote_code=False,
            dtype=dtype,
            max_model_len=max_tokens,
            max_num_seqs=batch_rows,
            max_num_batched_tokens=max(16384, max_tokens or 0),
            gpu_memory_utilization=memory_fraction,
            enable_sleep_mode=self._can_sleep,
            enable_prefix_caching=True,  # a context is read once for its group
            # vLLM 0.32 rewinds the noise of a request whose prompt is prefilled in chunks, which only CUDA's generators
            # support. On CPUs prompts are therefore read whole.
            enable_chunked_prefill=not on_cpu,
            enforce_eager=on_cpu,
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled from, at its temperature
            seed=0,
        )

    def generate(self, request: SamplingRequest, stop_ids: Sequence[int]) -> list[Sampled]:
        """Sample the P·G responses, in the order of the request's seeds, on which alone their noise depends."""
        if self._can_sleep:
            self._llm.wake_up()
        prompts = [{"prompt_token_ids": list(ids)} for ids in request.prompts for _ in range(request.group_size)]
        settings = [
            SamplingParams(
                temperature=request.temperature,
                max_tokens=request.max_new_tokens,
                seed=int(seed) & ((1 << 63) - 1),
                logprobs=0,
                detokenize=False,
                stop_token_ids=list(stop_ids),
            )
            for seed in request.seeds
        ]
        outputs = self._llm.generate(prompts, settings, use_tqdm=False)
        if self._can_sleep:
            self._llm.sleep(level=1)
        return [_sampled(output.outputs[0], stop_ids) for output in outputs]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights, given by their `transformers` names, and drop the prefix cache of the old ones."""
        if self._can_sleep:
            self._llm.wake_up()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.apply_model(_repack_tied_head)
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Release the model. Call it before its process group is destroyed."""
        self._llm.llm_engine.engine_core.shutdown()


def _sampled(output: object, stop_ids: Sequence[int]) -> Sampled:
    ids = list(output.token_ids)  # type: ignore[attr-defined]
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]  # type: ignore[attr-defined]
    return ids, logprobs, bool(ids) and ids[-1] in stop_ids


def _repack_tied_head(model: torch.nn.Module) -> int:
    """Repack the weights that vLLM's reload leaves stale on CPUs; return the number of repacked modules.

    On CPUs vLLM multiplies with packed copies of the weights. Its reload repacks those of linear layers but not those
    of the embedding and a head tied to it, which would keep sampling from the old policy.
    """
    if not current_platform.is_cpu():
        return 0
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    packed = [module for module in model.modules() if hasattr(module, "cpu_linear")]
    # Layers that were repacked have an empty weight.
    stale = [module for module in packed if isinstance(module.weight, Tensor) and module.weight.numel() > 0]
    for module in stale:
        dispatch_cpu_unquantized_gemm(module, remove_weight=False)
    return len(stale)
