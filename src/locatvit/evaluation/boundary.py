"""Where the classes of a label map end: the region in which boundary IoU is counted.

Source: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021. The boundary
region of a mask is what an erosion by ``d`` pixels takes away from it, the outside of the image counting as outside
of the mask; boundary IoU is the IoU of the two regions, of truth and of prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

DISTANCE_SHARE = 0.02
"""Width of the region, as a share of the image's diagonal: the paper's for semantic and instance masks."""

_LABELS_IN_A_BYTE = 254


def boundary_distance(height: int, width: int, share: float = DISTANCE_SHARE) -> int:
    """Width of the boundary region in pixels: ``share`` of the diagonal, rounded, and 1 at least."""
    return max(1, round(share * math.hypot(height, width)))


def near_boundary(
    labels: Integer[Tensor, "B H W"], labelled: Bool[Tensor, "B H W"], distance: int, num_classes: int
) -> Bool[Tensor, "B H W"]:
    """Whether a pixel lies in the boundary region of its own class, for all classes at once.

    A pixel of class c survives the erosion of c's mask by a square of ``2 * distance + 1`` if all of that square lies
    in the image and is of class c. So it lies in the boundary region where the greatest label in the square differs
    from the least, or the square leaves the image. Greatest and least come from a logarithmic number of comparisons of
    the map with itself, shifted; no class is looked at by itself.

    Pixels that are not labelled are transparent: they neither make an edge nor lie in a region. Otherwise a perfect
    prediction could not score 1, as it has no edge where the truth falls silent.

    Args:
        labels: classes from 0; what stands at pixels that are not ``labelled`` does not matter.
        labelled: the pixels that count.
        distance: in pixels, 1 or more.
        num_classes: C.
    """
    height, width = labels.shape[-2:]
    near = torch.ones_like(labelled)
    if min(height, width) > 2 * distance:
        # a byte a pixel is several times as fast as eight; 0 and top stand for nothing in greatest and least
        small, top = (torch.uint8, 255) if num_classes <= _LABELS_IN_A_BYTE else (torch.int32, num_classes + 1)
        shifted = (labels + 1).to(small)
        greatest = _over_squares(shifted.masked_fill(~labelled, 0), distance, torch.maximum)
        least = _over_squares(shifted.masked_fill(~labelled, top), distance, torch.minimum)
        near[..., distance : height - distance, distance : width - distance] = greatest != least
    return near & labelled


def _over_squares(
    values: Integer[Tensor, "B H W"], distance: int, pick: Callable[[Tensor, Tensor], Tensor]
) -> Integer[Tensor, "B h w"]:
    """``pick`` over the squares of ``2 * distance + 1`` that lie in the image: [B, H - 2 distance, W - 2 distance]."""
    for axis in (-2, -1):
        length, window = 1, 2 * distance + 1
        while length < window:
            step = min(length, window - length)
            remaining = values.shape[axis] - step
            values = pick(values.narrow(axis, 0, remaining), values.narrow(axis, step, remaining))
            length += step
    return values
