"""Compile the Triton kernels for NVIDIA GPUs of several kinds, to machine code, which needs none: `python -m …`."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.scoring import entropy_triton as kernels

GPUS = {"A100": 80, "H100, H200": 90}
NUMBERS = {"W": "i32", "P": "i32", "stride": "i32"}
POINTERS = {
    "targets_C": "*i64", "target_C": "*fp32", "lse_C": "*fp32", "rank_C": "*i32", "maxima_CP": "*fp32",
    "top_CK": "*fp32", "ids_CK": "*i64",
}  # fmt: skip
REDUCE = {"BLOCK": kernels.BLOCK, "TILE": kernels._TILE}
SELECT = [{"K": K, "ROWS": K, "BLOCKS": 2048, "BLOCK": kernels.BLOCK} for K in (16, kernels.MOST_SELECTED)]


def main() -> None:
    """Every kernel for every GPU and type of logits, with the sizes of a vocabulary of 152k."""
    for capability in GPUS.values():
        for logits in ("*bf16", "*fp32"):
            for kernel, warps, constants in (
                (kernels._reduce_row, 8, REDUCE),
                *((kernels._select_row, 4, constants) for constants in SELECT),
            ):
                known = NUMBERS | POINTERS | {"logits_CW": logits} | dict.fromkeys(constants, "constexpr")
                signature = {name: known[name] for name in kernel.arg_names}
                source = ASTSource(kernel, signature, constants)
                made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
                assert len(made.asm["cubin"]) > 1000
                print(kernel.__name__, capability, logits)


if __name__ == "__main__":
    main()
