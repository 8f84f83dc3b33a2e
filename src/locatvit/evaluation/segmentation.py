"""The paper's segmentation protocol: a head with one hidden layer on frozen patch tokens (Section 5).

The pieces stand apart: ``recipes`` joins them to the training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn, frozen
from locatvit.evaluation.metrics import SegmentationMetrics, SegmentationScores
from locatvit.features import Features

_CLASSES_AT_A_TIME = 16


class SegmentationHead(nn.Module):
    """1x1 convolution (no bias), ``GroupNorm`` of one group, GELU, 1x1 convolution to the classes.

    Args:
        embed_dim: width D of the patch tokens.
        num_classes: C.
        hidden_dim: channels of the hidden layer.

    Raises:
        LocAtError: a size below 1.
    """

    def __init__(self, embed_dim: int, num_classes: int, hidden_dim: int = 512) -> None:
        super().__init__()
        for name, size in (
            ("embed_dim", embed_dim),
            ("num_classes", num_classes),
            ("hidden_dim", hidden_dim),
        ):
            if size < 1:
                raise LocAtError(f"{name} is {size}; it must be at least 1")
        self.embed_dim = embed_dim
        self.layers = nn.Sequential(
            nn.Conv2d(embed_dim, hidden_dim, kernel_size=1, bias=False),
            nn.GroupNorm(1, hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, num_classes, kernel_size=1),
        )

    def forward(self, features: Features) -> Float[Tensor, "B C h w"]:
        """Class logits of every patch.

        Raises:
            LocAtError: the patch tokens are not ``embed_dim`` wide.
        """
        width = features.patches.shape[-1]
        if width != self.embed_dim:
            raise LocAtError(
                f"the patch tokens are {width} wide but the head reads embed_dim {self.embed_dim}; build the "
                "head for this backbone and this layer"
            )
        logits: Tensor = self.layers(features.patch_map)
        return logits


def build_optimizer(head: nn.Module, config: SegmentationConfig) -> AdamW:
    """The protocol's AdamW. Unlike in classification, biases and norm are decayed too; it clips nothing."""
    return AdamW(head.parameters(), lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)


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
    features_fn: FeaturesFn, head: nn.Module, images: Float[Tensor, "B 3 height width"], size: Sequence[int]
) -> Integer[Tensor, "B H W"]:
    """The likeliest class of every pixel: whole images in one go, logits resized bilinearly to ``size``.

    The map of patches is stretched over the whole label, also where the backbone padded the image to a
    multiple of its patch, as in the authors' protocol.

    Args:
        features_fn: gives the backbone's features, e.g. ``frozen_features(model)``.
        head: gives class logits ``[B, C, h, w]`` of features.
        images: normalised, at the test scale, in their own aspect.
        size: (H, W) of the label, in pixels; it need not be that of ``images``.
    """
    return _resized_argmax(head(features_fn(images)).float(), (size[0], size[1]))


def _resized_argmax(logits: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Integer[Tensor, "B H W"]:
    """Resize, then argmax, a few classes at a time: all logits of a large label take gigabytes."""
    best: Tensor | None = None
    for first in range(0, logits.shape[1], _CLASSES_AT_A_TIME):
        part = logits[:, first : first + _CLASSES_AT_A_TIME]
        value, index = F.interpolate(part, size=size, mode="bilinear", align_corners=False).max(dim=1)
        if best is None:
            best, labels = value, index
        else:
            labels = torch.where(value > best, index + first, labels)
            best = torch.maximum(value, best)
    return labels


def evaluate_segmentation(
    features_fn: FeaturesFn,
    head: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str],
    ignore_index: int | None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int | None], None] | None = None,
) -> SegmentationScores:
    """mIoU, pixel accuracy and the IoU of each class over the whole of ``loader``.

    Args:
        features_fn, head: see ``predict``. The head is in evaluation mode, and no gradients are kept.
        loader: (images ``[B, 3, height, width]`` at the test scale, masks ``[B, H, W]`` at the label's size).
        class_names: a name for each label, from 0.
        ignore_index: label of the pixels that do not count.
        device: where images and masks are brought; the model and the head must be there.
        progress: called after each batch with the batches done and, where the loader knows it, their number.

    Raises:
        LocAtError: no labelled pixel in the set, or a mask's value that is no class.
    """
    metrics = SegmentationMetrics(class_names, ignore_index, device=device)
    total = len(loader) if isinstance(loader, Sized) else None
    with frozen(head):
        for done, (images, masks) in enumerate(loader, start=1):
            labels = predict(features_fn, head, images.to(device), masks.shape[-2:])
            metrics.update(labels, masks.to(device))
            if progress is not None:
                progress(done, total)
    return metrics.compute()
