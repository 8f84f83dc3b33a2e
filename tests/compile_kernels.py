"""Compile every fused kernel for two GPUs, which needs neither, and print the size of each: run as a program.

The interpreter forgives what the compiler does not: types that change in a loop, shapes that are no powers of two.
"""

from __future__ import annotations

import itertools
import sys
import warnings

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from locatvit.ops import prediction_kernels
from locatvit.ops.attention import triton_kernels
from locatvit.ops.attention.triton_tiles import Tiles, choose_tiles
from locatvit.ops.launches import launch_options

TARGETS = {GPUTarget("cuda", 90, 32): 227 * 1024, GPUTarget("cuda", 89, 32): 99 * 1024}
"""A GPU for computing and one for graphics, with the shared memory that a program can have there."""
TOKENS = {"q", "k", "v", "x", "out", "grad_out", "grad_q", "grad_k", "grad_v", "grad_x"}
FLOATS = {
    "row", "column", "bias", "log_sum", "delta", "numbers", "grad_row", "grad_column", "grad_bias", "weight", "parts",
    "widths", "alpha", "grad_widths", "grad_alpha",
}  # fmt: skip
NUMBERS = {"scale", "clamp", "variance_max", "shift", "floor"}


def build(target: GPUTarget, name: str, dtype: str, tiles: Tiles, **constants: object) -> None:
    """Compile one kernel for tokens of ``dtype``; raises what the compiler raises, or where a GPU could not hold it."""
    kernel = getattr(
        prediction_kernels if name.startswith("predict_") else triton_kernels, name.removeprefix("predict_")
    )
    signature, values = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        elif argument in TOKENS or argument in FLOATS:
            signature[argument] = f"*{dtype}" if argument in TOKENS else "*fp32"
        else:
            signature[argument] = "fp32" if argument in NUMBERS else "i32"
    options = launch_options(tiles.num_warps, tiles.num_stages)
    source = ASTSource(kernel, signature=signature, constexprs=values)
    compiled = compile(source, target=target, options=options)
    assert compiled.metadata.shared <= TARGETS[target], (name, constants, compiled.metadata.shared)
    print(
        f"compiled for sm_{target.arch}: {name} {dtype} {constants}: {compiled.metadata.shared} bytes of shared memory",
        flush=True,
    )


def main() -> int:
    """The launches of ViT at 224 and 1024 pixels and of Swin, in two precisions."""
    import torch

    warnings.simplefilter("error")
    half, full = torch.bfloat16, torch.float32
    shapes = (
        ((14, 14), 64, half, 1, False, True), ((14, 14), 64, half, 1, False, False),
        ((64, 64), 80, half, 5, False, True), ((7, 7), 32, half, 0, True, True),
        ((14, 14), 64, full, 1, False, True), ((5, 37), 8, half, 16, True, False),
    )  # fmt: skip
    for target, (grid_size, head_dim, dtype, prefix, bias, gaussian) in itertools.product(TARGETS, shapes):
        word = "bf16" if dtype == half else "fp32"
        common = {
            "HEAD_DIM": head_dim, "DEPTH": max(16, 1 << (head_dim - 1).bit_length()), "GAUSSIAN": gaussian,
            "PRECISION": "ieee" if dtype == full else "tf32",
        }  # fmt: skip
        for name, more in (
            ("forward", {}),
            ("backward_queries", {"NEEDS_Q": True, "NEEDS_FACTORS": True}),
            ("backward_keys", {"HAS_PREFIX": prefix > 0}),
        ):
            tiles = choose_tiles(name, grid_size, head_dim, dtype, TARGETS[target], has_bias=bias)
            sizes = {"QUERIES": tiles.queries, "ROWS": tiles.rows, "COLUMNS": tiles.columns, "HAS_BIAS": bias}
            if name != "backward_keys":
                more = {**more, "EVEN": tiles.fit(grid_size), "PREFIX": 16 if prefix else 0}
            build(target, name, word, tiles, **common, **sizes, **more)
        if bias:
            build(target, "backward_bias", word, Tiles(32, 1, 32), **common, QUERIES=32, KEYS=32)
    predicted = (("bf16", 32, 2, True, True), ("fp32", 80, 1, True, False), ("bf16", 192, 4, False, True))
    for target, (word, width, num_widths, has_alpha, needs_weight) in itertools.product(TARGETS, predicted):
        sizes = {
            "WIDTH": width, "DEPTH": 1 << (width - 1).bit_length(), "NUM_WIDTHS": num_widths, "HAS_ALPHA": has_alpha,
            "TOKENS": 64,
        }  # fmt: skip
        build(target, "predict_forward", word, Tiles(64, 1, 1), **sizes, STARTS_AT_ZERO=needs_weight)
        build(target, "predict_backward", word, Tiles(64, 1, 1), **sizes, NEEDS_X=True, NEEDS_WEIGHT=needs_weight)
    return 0


if __name__ == "__main__":
    sys.exit(main())
