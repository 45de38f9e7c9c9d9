"""Compile the Triton kernels for NVIDIA GPUs of several kinds, to machine code, which needs none: `python -m …`.

A line a kernel: GPU, type and shape, and what the machine code takes of registers, local memory and shared memory.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.grpo import decode_triton as decode
from pipeline.grpo import drawing_triton as drawing
from pipeline.grpo import head_triton as head
from pipeline.scoring import entropy_triton as scoring

GPUS = {"A100": 80, "H100, H200": 90}
TYPES = {"*bf16": torch.bfloat16, "*fp32": torch.float32}
MODELS = {
    "Qwen2.5-0.5B": {"H": 14, "K": 2, "D": 64},
    "Qwen2.5-1.5B": {"H": 12, "K": 2, "D": 128},
}
VOCABULARY = 151_936
ROWS = 8
"""Rows of a context."""

POINTERS = {
    "targets_C": "*i64", "target_C": "*fp32", "lse_C": "*fp32", "rank_C": "*i32", "maxima_CP": "*fp32",
    "top_CK": "*fp32", "ids_CK": "*i64",
    "logprobs_C": "*fp32", "total_C": "*fp32", "entropy_C": "*fp32", "grad_C": "*fp32", "grad_entropy_C": "*fp32",
    "largest_RB": "*fp32", "total_RB": "*fp32", "uniform_R": "*fp32", "ids_R": "*i64", "logprobs_R": "*fp32",
    "column_1": "*i64", "first_P": "*i32", "bounds_P1": "*i32", "part_SRHD": "*fp32", "log_SRH": "*fp32",
}  # fmt: skip
"""Those of a type of their own; others are of the model's."""
OF_THE_MODEL = {
    "logits_CW", "logits", "query", "key", "value", "cos", "sin", "keys", "values", "out", "out_RF", "gate_up"
}  # fmt: skip
NUMBERS = {"factor": "fp32", "scale": "fp32", "temperature": "fp32"}
"""Others are i32, and multiples of 16 if Triton may look."""

Kernel = tuple[str, Any, dict[str, int]]
"""Its shape in words, the function and what it is compiled with."""


def kernels(dtype: torch.dtype) -> Iterator[Kernel]:
    """Every kernel, those of scoring for a vocabulary of 152k."""
    yield "152k", scoring._reduce_row, {"BLOCK": scoring.BLOCK, "TILE": scoring._TILE, "num_warps": 8}
    for K in (16, scoring.MOST_SELECTED):
        sizes = {"K": K, "ROWS": K, "BLOCKS": 2048, "BLOCK": scoring.BLOCK, "num_warps": 4}
        yield f"152k, top {K}", scoring._select_row, sizes
    for name, shape in MODELS.items():
        yield name, decode._rotate_and_store, decode.rotate_sizes(**shape)
        yield name, decode._attend_context, decode.context_sizes(**shape, most_rows=ROWS, dtype=dtype)
        yield name, decode._attend_own, decode.own_sizes(**shape, dtype=dtype)
        yield name, decode._swiglu, decode.swiglu_sizes()
    yield "152k", drawing._read_blocks, drawing.block_sizes()
    for greedy in (False, True):
        yield (
            f"152k, greedy {greedy}",
            drawing._draw,
            drawing.row_sizes(triton.cdiv(VOCABULARY, drawing.BLOCK), greedy=greedy),
        )
    for kernel in (head._read_logits, head._into_slope):
        yield "152k", kernel, head.sizes()


def compiled(kernel: Any, sizes: dict[str, int], model_type: str, capability: int) -> Any:
    """For arguments as Triton finds them when it is called: addresses and strides are multiples of 16."""
    constants = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    options = {name: value for name, value in sizes.items() if name not in constants}
    known = NUMBERS | POINTERS | dict.fromkeys(OF_THE_MODEL, model_type) | dict.fromkeys(constants, "constexpr")
    signature = {name: known.get(name, "i32") for name in kernel.arg_names}
    looked_at = {
        (at,): [["tt.divisibility", 16]]
        for at, (name, kind) in enumerate(signature.items())
        if kind not in ("constexpr", "fp32") and name not in (kernel.do_not_specialize or ())
    }
    source = ASTSource(kernel, signature, constants, looked_at)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def taken(made: Any) -> str:
    """Registers of a thread, bytes of local memory, where registers are spilled to, and of shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    local = int(found["STACK"]) + int(found["LOCAL"])
    return f"{found['REG']} registers, {local} bytes local, {made.metadata.shared} bytes shared"


def main() -> None:
    """Every kernel for every GPU and type of the model."""
    for capability in GPUS.values():
        for model_type, dtype in TYPES.items():
            for shape, kernel, sizes in kernels(dtype):
                made = compiled(kernel, sizes, model_type, capability)
                assert len(made.asm["cubin"]) > 1000
                print(kernel.__name__, capability, model_type, shape, taken(made), sep=", ")


if __name__ == "__main__":
    main()
