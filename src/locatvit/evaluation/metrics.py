"""Segmentation scores, counted over the whole set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Integer
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from locatvit.errors import LocAtError

SegmentationScores = tuple[dict[str, float], dict[str, float | None]]
"""``{"miou", "pixel_accuracy"}`` and the IoU by class, as fractions; None for a class that never shows."""


class SegmentationMetrics:
    """mIoU, per-class IoU and pixel accuracy, from counts of pixels summed over all images.

    The IoU of a class is its intersection over its union in the whole set; mIoU is the mean over the classes
    that show in prediction or truth. A class that shows in neither has no IoU (None) and no part in the mean;
    nor has a class that is itself the ignored label. In a distributed run ``compute`` sums over processes.

    Args:
        class_names: a name for each label, from 0.
        ignore_index: pixels whose truth is this label count nowhere; None counts all.
        device: where the counts lie.

    Raises:
        LocAtError: fewer than two classes, or a name that comes twice.
    """

    def __init__(
        self, class_names: Sequence[str], ignore_index: int | None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        num_classes = len(self.class_names)
        if num_classes < 2 or len(set(self.class_names)) < num_classes:
            raise LocAtError(f"class_names are {list(class_names)}; there must be two or more, each with its own name")
        settings = {"num_classes": num_classes, "ignore_index": ignore_index, "validate_args": False}
        # one group: both metrics read one matrix of counts
        self._counts = MetricCollection(
            {
                "iou": MulticlassJaccardIndex(average="none", **settings),
                "pixels": MulticlassConfusionMatrix(**settings),
            },
            compute_groups=[["iou", "pixels"]],
        ).to(device)
        # counted once, an empty set is answered by our message and not by a warning
        nothing = torch.empty(0, dtype=torch.long, device=device)
        self._counts.update(nothing, nothing)

    def update(self, predicted: Integer[Tensor, "B H W"], truth: Integer[Tensor, "B H W"]) -> None:
        """Count the pixels of a batch.

        Raises:
            LocAtError: the two differ in shape, or a label of ``truth`` is no class and not the ignored one.
        """
        if predicted.shape != truth.shape:
            raise LocAtError(
                f"predicted has shape {tuple(predicted.shape)} but truth {tuple(truth.shape)}; resize the "
                "logits to the label's size"
            )
        truth = truth.long()
        labels = truth if self.ignore_index is None else truth[truth != self.ignore_index]
        wrong = labels[(labels < 0) | (labels >= len(self.class_names))]
        if wrong.numel():
            raise LocAtError(
                f"a mask has the value {int(wrong[0])}; it must be a class, 0 to {len(self.class_names) - 1}"
                f", or ignore_index {self.ignore_index}; give the class names that the masks were made with"
            )
        self._counts.update(predicted, truth)

    def compute(self) -> SegmentationScores:
        """The scores of all that was counted.

        Raises:
            LocAtError: not one labelled pixel was counted.
        """
        scores = self._counts.compute()
        pixels = scores["pixels"]
        if not pixels.any():
            raise LocAtError(
                f"no labelled pixel: the set is empty, or every pixel is ignore_index {self.ignore_index}; "
                "check the annotations' folder"
            )
        shows = (pixels.sum(dim=0) + pixels.sum(dim=1) > 0).tolist()
        if self.ignore_index is not None and 0 <= self.ignore_index < len(shows):
            shows[self.ignore_index] = False
        per_class = {
            name: iou if shown else None
            for name, iou, shown in zip(self.class_names, scores["iou"].tolist(), shows, strict=True)
        }
        counted = [iou for iou in per_class.values() if iou is not None]
        accuracy = int(pixels.diagonal().sum()) / int(pixels.sum())
        return {"miou": sum(counted) / len(counted), "pixel_accuracy": accuracy}, per_class
