"""What the backbone is shown of a test image, and how class logits of its parts become one label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn
from locatvit.features import Features

Window = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

_CLASSES_AT_A_TIME = 16


@dataclass(frozen=True)
class Seen:
    """A batch of test images as the backbone has seen them.

    Attributes:
        features: of all windows: those of the first place of every image, then those of the second, and so on.
        windows: their places, the same in all images; of whole images one.
        image_size: (height, width) of the images in pixels.
    """

    features: Features
    windows: tuple[Window, ...]
    image_size: tuple[int, int]


def windows_of(image_size: Sequence[int], config: SegmentationConfig) -> tuple[Window, ...]:
    """The places that the backbone is shown: the whole image, or windows a stride apart, row by row.

    The last window of a row or column is moved inwards, to end with the image; a side shorter than the window is
    shown whole.
    """
    value = config.values()
    height, width = image_size[0], image_size[1]
    if not value["window_size"]:
        return ((0, 0, height, width),)
    rows, columns = (_starts(side, value["window_size"], value["window_stride"]) for side in (height, width))
    size = min(value["window_size"], height), min(value["window_size"], width)
    return tuple((top, left, *size) for top in rows for left in columns)


def _starts(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def see(features_fn: FeaturesFn, images: Float[Tensor, "B 3 height width"], config: SegmentationConfig) -> Seen:
    """Show the backbone the images, whole or through windows; all windows have one size and go as one batch.

    Args:
        features_fn: gives the backbone's features, e.g. ``frozen_features(model)``.
        images: normalised, at the test scale, in their own aspect.
        config: of the protocol.
    """
    size = (images.shape[-2], images.shape[-1])
    windows = windows_of(size, config)
    shown = [images[..., top : top + height, left : left + width] for top, left, height, width in windows]
    return Seen(features_fn(torch.cat(shown)), windows, size)


def label_map(head: nn.Module, seen: Seen, size: Sequence[int]) -> Integer[Tensor, "B H W"]:
    """The likeliest class of every pixel.

    The logits of a window are stretched bilinearly over it, also where the backbone padded it to a multiple of its
    patch, as in the authors' protocol. Where windows overlap, logits are averaged. They are then resized to ``size``.

    Args:
        head: gives class logits ``[B, C, h, w]`` of features.
        seen: from ``see``.
        size: (H, W) of the label, in pixels; it need not be that of the images.
    """
    logits = head(seen.features).float().unflatten(0, (len(seen.windows), -1))
    best: Tensor | None = None
    # all logits of a large label take gigabytes
    for first in range(0, logits.shape[2], _CLASSES_AT_A_TIME):
        part = logits[:, :, first : first + _CLASSES_AT_A_TIME]
        value, index = _resize(_joined(part, seen), (size[0], size[1])).max(dim=1)
        if best is None:
            best, labels = value, index
        else:
            labels = torch.where(value > best, index + first, labels)
            best = torch.maximum(value, best)
    return labels


def _joined(logits: Float[Tensor, "W B C h w"], seen: Seen) -> Float[Tensor, "B C height width"]:
    """The logits of the windows as one map; of a whole image the map as it is."""
    if len(seen.windows) == 1:
        return logits[0]
    total = logits.new_zeros(*logits.shape[1:3], *seen.image_size)
    count = logits.new_zeros(seen.image_size)
    for part, (top, left, height, width) in zip(logits, seen.windows, strict=True):
        inside = (..., slice(top, top + height), slice(left, left + width))
        total[inside] += _resize(part, (height, width))
        count[inside] += 1
    return total / count


def _resize(logits: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
