"""How fast a step could be at best: its operations and bytes, over what a device does in a second."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benchmarks.attention.cases import Case, ModelCase, OpCase
from benchmarks.attention.contenders import PLAIN, dtype_of
from benchmarks.attention.model import make_model
from locatvit.analysis.cost import count

_FLOAT32 = 4


@dataclass(frozen=True)
class Device:
    """What a device does in a second, by its maker.

    Attributes:
        operations: dense bfloat16 matrix products; a multiply-add is two.
        bytes: read from and written to its memory.
    """

    operations: float
    bytes: float


DEVICES = {"NVIDIA H200": Device(operations=989e12, bytes=4.8e12)}
"""By the name that the driver gives; others have no estimate."""


@dataclass(frozen=True)
class Work:
    """Operations of matrix products, and bytes that must move."""

    operations: float
    bytes: float


def least_seconds(case: Case, contender: str, device: torch.device) -> float | None:
    """The time that no step of this case can beat on this device, or None where no estimate is made.

    What is computed and what is moved overlap at best, so it is the longer of the two.
    """
    limits = DEVICES.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if limits is None else _seconds(work(case, contender, dtype_of(case).itemsize), limits)


def _seconds(done: Work | None, limits: Device) -> float | None:
    return None if done is None else max(done.operations / limits.operations, done.bytes / limits.bytes)


def work(case: Case, contender: str, itemsize: int) -> Work | None:
    """The least that a step needs, whoever does it; None for PRR.

    Attention, of B images, H heads, L tokens, N patches, heads K wide:

    * operations: 2 B H L² K a product. Forward 2 of them; backward 5, as the logits are made again.
    * bytes: q, k, v and output move once in the forward pass; backward these four and the output's gradient are read,
      the gradients of q, k, v written. LocAt: two variances and alpha a patch are read, in training read again and
      their gradients written. A bias of windows is read, in training read again and its gradient written.

    Models: the operations of all products and convolutions, three times as many in training.

    Args:
        itemsize: bytes of a number of q, k and v.
    """
    if isinstance(case, OpCase):
        pairs, tokens, width = case.batch_size * case.num_heads, case.num_tokens, case.head_dim
        products, moved, small = (7, 12, 3) if case.train else (2, 4, 1)
        of_locat = 0 if contender == PLAIN else 3 * _FLOAT32 * pairs * case.num_patches
        of_windows = itemsize * case.num_windows * case.num_heads * tokens**2
        return Work(
            products * 2 * pairs * tokens**2 * width,
            moved * itemsize * pairs * tokens * width + small * (of_locat + of_windows),
        )
    if isinstance(case, ModelCase):
        of_an_image = _multiply_adds(case, PLAIN if contender == PLAIN else "auto")
        return Work((3 if case.train else 1) * 2 * of_an_image * case.batch_size, 0)
    return None


@functools.cache
def _multiply_adds(case: ModelCase, contender: str) -> int:
    with torch.device("meta"):
        model = make_model(case, contender)
    return count(model, (case.image_size, case.image_size)).multiply_adds
