"""Compile every fused kernel for Hopper, which needs no GPU, and print the size of each: run as a program.

The interpreter forgives what the compiler does not: types that change in a loop, shapes that are no powers of two.
"""

from __future__ import annotations

import sys
import warnings

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from locatvit.ops.attention import triton_kernels
from locatvit.ops.attention.triton import choose_tiles

TARGET = GPUTarget("cuda", 90, 32)
TOKENS = {"q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v"}
FLOATS = {"row", "column", "bias", "log_sum", "delta", "numbers", "grad_row", "grad_column", "grad_bias"}


def build(name: str, dtype: str, **constants: object) -> None:
    """Compile one kernel for tokens of ``dtype``; raises what the compiler raises."""
    kernel = getattr(triton_kernels, name)
    signature, values = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        elif argument in TOKENS or argument in FLOATS:
            signature[argument] = f"*{dtype}" if argument in TOKENS else "*fp32"
        else:
            signature[argument] = "fp32" if argument in ("scale", "clamp") else "i32"
    compiled = compile(ASTSource(kernel, signature=signature, constexprs=values), target=TARGET)
    print(f"compiled {name} {dtype} {constants}: {compiled.metadata.shared} bytes of shared memory", flush=True)


def main() -> int:
    """The launches of ViT at 224 and 1024 pixels and of Swin, in two precisions."""
    import torch

    warnings.simplefilter("ignore")
    half, full = torch.bfloat16, torch.float32
    for grid_size, head_dim, dtype, prefix, bias, gaussian in (
        ((14, 14), 64, half, 1, False, True), ((14, 14), 64, half, 1, False, False),
        ((64, 64), 80, half, 5, False, True), ((7, 7), 32, half, 0, True, True),
        ((14, 14), 64, full, 1, False, True), ((5, 37), 8, half, 16, True, False),
    ):  # fmt: skip
        tiles, word = choose_tiles("forward", grid_size, head_dim, dtype), "bf16" if dtype == half else "fp32"
        common = {
            "HEAD_DIM": head_dim, "DEPTH": max(16, 1 << (head_dim - 1).bit_length()), "QUERIES": tiles.queries,
            "PRECISION": "ieee" if dtype == full else "tf32", "GAUSSIAN": gaussian,
        }  # fmt: skip
        tiled = {**common, "ROWS": tiles.rows, "COLUMNS": tiles.columns, "HAS_BIAS": bias}
        by_query = {**tiled, "EVEN": tiles.fit(grid_size), "PREFIX": 16 if prefix else 0}
        build("forward", word, **by_query)
        build("backward_queries", word, **by_query, NEEDS_Q=True, NEEDS_FACTORS=True)
        build("backward_keys", word, **tiled, HAS_PREFIX=prefix > 0)
        if bias:
            build("backward_bias", word, **{**common, "QUERIES": 32}, KEYS=32)
    return 0


if __name__ == "__main__":
    sys.exit(main())
