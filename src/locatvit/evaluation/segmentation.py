"""Segmentation from frozen patch tokens: the path that the protocols ``locat`` and ``linear`` share.

What each protocol freezes stands in ``locat_segmentation`` and ``linear_segmentation``; the pieces here take its
``SegmentationConfig``, and ``recipes`` joins them to the training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn, frozen
from locatvit.evaluation.heads import LinearHead, PatchHead, SegmentationHead, build_head
from locatvit.evaluation.metrics import SegmentationMetrics, SegmentationScores
from locatvit.evaluation.sliding import Seen, label_map, see
from locatvit.features import Features

__all__ = [
    "LinearHead", "PatchHead", "Seen", "SegmentationHead", "build_head", "build_optimizer", "evaluate_segmentation",
    "predict", "ramped_schedule", "segmentation_loss",
]  # fmt: skip

OnImage = Callable[[int, Integer[Tensor, "H W"], Integer[Tensor, "H W"]], None]
"""Called with the place of an image in the set, its predicted and its true classes."""

_WHOLE = SegmentationConfig("locat")


def build_optimizer(head: nn.Module, config: SegmentationConfig) -> AdamW:
    """The protocol's AdamW. Unlike in classification, biases and norm are decayed too; it clips nothing."""
    value = config.values()
    return AdamW(head.parameters(), lr=value["lr"], betas=(0.9, 0.999), weight_decay=value["weight_decay"])


def ramped_schedule(optimizer: Optimizer, config: SegmentationConfig) -> LambdaLR:
    """Protocol ``linear``'s learning rate: a line from the peak to 0, over the first ``pct_start`` of the updates
    multiplied by a ramp from ``1 / div_factor`` to 1. ``step()`` once an update.
    """
    value = config.values()
    num_updates, first = value["num_updates"], 1 / value["div_factor"]
    climb = round(value["pct_start"] * num_updates)

    def share_of_peak(update: int) -> float:
        ramp = 1.0 if update >= climb else first + (1 - first) * update / climb
        return ramp * max(0.0, 1 - update / num_updates)

    return LambdaLR(optimizer, share_of_peak)


def segmentation_loss(
    head: nn.Module, features: Features, mask: Integer[Tensor, "B H W"], ignore_index: int
) -> Float[Tensor, ""]:
    """Mean cross entropy over the labelled pixels, in nats, of logits resized bilinearly to the label's size.

    A batch without any labelled pixel has loss 0, and gradient 0.
    """
    logits = F.interpolate(head(features).float(), size=mask.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, mask.long(), ignore_index=ignore_index, reduction="sum")
    return total / (mask != ignore_index).sum().clamp(min=1)


def predict(
    features_fn: FeaturesFn,
    head: nn.Module,
    images: Float[Tensor, "B 3 height width"],
    size: Sequence[int],
    config: SegmentationConfig = _WHOLE,
) -> Integer[Tensor, "B H W"]:
    """The likeliest class of every pixel, of whole images or through a sliding window as the protocol has it.

    Args:
        features_fn: gives the backbone's features, e.g. ``frozen_features(model)``.
        head: gives class logits ``[B, C, h, w]`` of features.
        images: normalised, at the test scale, in their own aspect.
        size: (H, W) of the label, in pixels; it need not be that of ``images``.
        config: of the protocol; by default whole images.
    """
    return label_map(head, see(features_fn, images, config), size)


def evaluate_segmentation(
    features_fn: FeaturesFn,
    head: nn.Module,
    loader: Iterable[tuple[Tensor | Seen, Tensor]],
    class_names: Sequence[str],
    ignore_index: int | None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int | None], None] | None = None,
    *,
    config: SegmentationConfig = _WHOLE,
    on_image: OnImage | None = None,
) -> SegmentationScores:
    """mIoU, pixel accuracy, boundary IoU and the IoU of each class over the whole of ``loader``.

    Args:
        features_fn, head, config: see ``predict``. The head is in evaluation mode, and no gradients are kept.
        loader: (images ``[B, 3, height, width]`` at the test scale, masks ``[B, H, W]`` at the label's size); in the
            place of images what the backbone has seen of them before.
        class_names: a name for each label, from 0.
        ignore_index: label of the pixels that do not count.
        device: where images and masks are brought; the model and the head must be there.
        progress: called after each batch with the batches done and, where the loader knows it, their number.
        on_image: called for each image, in the loader's order.

    Raises:
        LocAtError: no labelled pixel in the set, or a mask's value that is no class.
    """
    metrics = SegmentationMetrics(class_names, ignore_index, device=device)
    total, num_images = len(loader) if isinstance(loader, Sized) else None, 0
    with frozen(head):
        for done, (shown, masks) in enumerate(loader, start=1):
            seen = shown if isinstance(shown, Seen) else see(features_fn, shown.to(device), config)
            labels, masks = label_map(head, seen, masks.shape[-2:]), masks.to(device)
            metrics.update(labels, masks)
            for predicted, truth in zip(labels, masks, strict=True):
                if on_image is not None:
                    on_image(num_images, predicted, truth)
                num_images += 1
            if progress is not None:
                progress(done, total)
    return metrics.compute()
