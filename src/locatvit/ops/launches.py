"""What launches of Triton kernels share, and sizes. No triton here: it takes a third of a second to import."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
IS_INSTALLED = importlib.util.find_spec("triton") is not None  # a search of the disk, so once


def launch_options(num_warps: int = 4, num_stages: int = 2) -> dict[str, Any]:
    """Of a launch, for the compiler: one multiply-add in the place of two steps, which its versions differ about."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def ceil_div(whole: int, size: int) -> int:
    """How many pieces of ``size`` hold the whole."""
    return -(-whole // size)


def power_of_two(size: int) -> int:
    """The least one that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be that of the tensors."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):
            return function(*arguments)

    return guarded
