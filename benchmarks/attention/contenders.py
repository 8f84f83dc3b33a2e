"""Who takes part: plain attention, every backend that can, the dense bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attention.cases import DENSE_BYTES, REFERENCE_TOKENS, Case, ModelCase, OpCase
from locatvit.ops.attention import BACKENDS, Request

PLAIN = "plain"
"""Without LocAt, by torch's fused attention: what all others are compared with."""
DENSE = "dense bias"


def dtype_of(case: Case) -> torch.dtype:
    """Of the arithmetic."""
    return getattr(torch, case.precision)


def taking_part(case: OpCase | ModelCase, requests: Iterable[Request]) -> tuple[str, ...]:
    """Plain attention first, then the backends that can serve all ``requests``, by preference, then the dense bias.

    What makes the logits whole takes part where they fit, the reference at small sizes only.
    """
    requests = list(requests)
    able = [name for name, each in BACKENDS.items() if all(each.why_not(request) is None for request in requests)]
    device_type = requests[0].device_type
    dense = {DENSE, "reference"} | (set() if device_type == "cpu" else {"sdpa"})
    left_out = set() if case.num_tokens <= REFERENCE_TOKENS else {"reference"}
    if case.logit_bytes > DENSE_BYTES["cpu" if device_type == "cpu" else "cuda"]:
        left_out |= dense
    return (PLAIN, *(name for name in (*able, DENSE) if name not in left_out))


@contextmanager
def kernels_of(contender: str, device: torch.device, has_bias: bool = False) -> Iterator[None]:
    """Plain attention on a GPU is flash attention, as far as that takes what else is added to the logits."""
    if contender == PLAIN and device.type == "cuda" and not has_bias:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield
    else:
        yield
