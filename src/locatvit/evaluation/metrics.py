"""Segmentation scores, counted over the whole set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from locatvit.errors import LocAtError
from locatvit.evaluation.boundary import DISTANCE_SHARE, boundary_distance, near_boundary

SegmentationScores = tuple[dict[str, float], dict[str, float | None]]
"""``{"miou", "pixel_accuracy", "boundary_iou"}`` and the IoU by class, as fractions; None for a class that never
shows."""


class _Pixels(MulticlassJaccardIndex):
    """torchmetrics' index over a matrix of counts that is filled by one ``bincount`` a batch, without copies."""

    confmat: Tensor

    def update(self, matrix: Integer[Tensor, "C C"]) -> None:
        """Add counts, row = truth, column = prediction."""
        self.confmat += matrix

    def compute(self) -> dict[str, Tensor]:
        """The IoU of each class, and the counts."""
        return {"iou": super().compute(), "pixels": self.confmat}


class _BoundaryPixels(Metric):
    """Counts by class in the boundary regions: of truth, of prediction, and of both where the two agree."""

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, counts: Integer[Tensor, "3 C"]) -> None:
        """Add counts."""
        self.counts += counts

    def compute(self) -> Integer[Tensor, "3 C"]:
        """The counts, summed over processes."""
        return self.counts


class SegmentationMetrics:
    """mIoU, per-class IoU, pixel accuracy and boundary IoU, from counts of pixels summed over all images.

    The IoU of a class is its intersection over its union in the whole set; mIoU is the mean over the classes
    that show in prediction or truth. A class that shows in neither has no IoU (None) and no part in the mean;
    nor has a class that is itself the ignored label. Boundary IoU is the same, counted only in the boundary regions
    of truth and prediction (see ``boundary``): it says how well edges are drawn. In a distributed run ``compute``
    sums over processes. Whatever the number of images, memory holds C x C counts.

    Args:
        class_names: a name for each label, from 0.
        ignore_index: pixels whose truth is this label count nowhere, and edges towards them are none; None counts all.
        device: where the counts lie.
        boundary_share: width of the boundary region as a share of the diagonal; None leaves boundary IoU out.

    Raises:
        LocAtError: fewer than two classes, a name that comes twice, or a share outside (0, 1).
    """

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int | None,
        *,
        device: torch.device | str = "cpu",
        boundary_share: float | None = DISTANCE_SHARE,
    ) -> None:
        self.class_names = tuple(class_names)
        self.ignore_index, self.boundary_share = ignore_index, boundary_share
        num_classes = len(self.class_names)
        if num_classes < 2 or len(set(self.class_names)) < num_classes:
            raise LocAtError(f"class_names are {list(class_names)}; there must be two or more, each with its own name")
        if boundary_share is not None and not 0 < boundary_share < 1:
            raise LocAtError(f"boundary_share is {boundary_share}; it must be a share of the diagonal, between 0 and 1")
        settings = {"num_classes": num_classes, "ignore_index": ignore_index, "validate_args": False}
        self._pixels = _Pixels(average="none", **settings).to(device)
        self._boundary = _BoundaryPixels(num_classes).to(device)
        # counted once, an empty set is answered by our message and not by a warning
        self._pixels.update(torch.zeros_like(self._pixels.confmat))
        self._boundary.update(torch.zeros_like(self._boundary.counts))

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
        num_classes = len(self.class_names)
        labelled = labelled_pixels(truth, num_classes, self.ignore_index)
        self._pixels.update(confusion_matrix(predicted, truth, labelled, num_classes))
        if self.boundary_share is not None and truth.numel():
            distance = boundary_distance(truth.shape[-2], truth.shape[-1], self.boundary_share)
            near_truth = near_boundary(truth, labelled, distance, num_classes)
            near_predicted = near_boundary(predicted, labelled, distance, num_classes)
            both = near_truth & near_predicted & (truth == predicted)
            regions = ((truth, near_truth), (predicted, near_predicted), (truth, both))
            self._boundary.update(torch.stack([_count(labels, region, num_classes) for labels, region in regions]))

    def compute(self) -> SegmentationScores:
        """The scores of all that was counted.

        Raises:
            LocAtError: not one labelled pixel was counted.
        """
        counted = self._pixels.compute()
        pixels = counted["pixels"]
        if not pixels.any():
            raise LocAtError(
                f"no labelled pixel: the set is empty, or every pixel is ignore_index {self.ignore_index}; "
                "check the annotations' folder"
            )
        shows = pixels.sum(dim=0) + pixels.sum(dim=1) > 0
        if self.ignore_index is not None and 0 <= self.ignore_index < len(shows):
            shows[self.ignore_index] = False
        iou = zip(self.class_names, counted["iou"].tolist(), shows.tolist(), strict=True)
        per_class = {name: value if shown else None for name, value, shown in iou}
        accuracy = int(pixels.diagonal().sum()) / int(pixels.sum())
        scores = {"miou": _mean(per_class.values()), "pixel_accuracy": accuracy}
        if self.boundary_share is not None:
            scores["boundary_iou"] = _mean(_boundary_iou(self._boundary.compute(), shows))
        return scores, per_class


def labelled_pixels(
    truth: Integer[Tensor, "*B H W"], num_classes: int, ignore_index: int | None
) -> Bool[Tensor, "*B H W"]:
    """The pixels that count.

    Raises:
        LocAtError: a label that is no class and not the ignored one.
    """
    labelled = (truth >= 0) & (truth < num_classes)
    allowed = labelled
    if ignore_index is not None:
        ignored = truth == ignore_index
        allowed, labelled = labelled | ignored, labelled & ~ignored
    if not allowed.all():
        raise LocAtError(
            f"a mask has the value {int(truth[~allowed][0])}; it must be a class, 0 to {num_classes - 1}"
            f", or ignore_index {ignore_index}; give the class names that the masks were made with"
        )
    return labelled


def confusion_matrix(
    predicted: Integer[Tensor, "*B H W"],
    truth: Integer[Tensor, "*B H W"],
    labelled: Bool[Tensor, "*B H W"],
    num_classes: int,
) -> Integer[Tensor, "C C"]:
    """How often each class (row) was predicted as each (column), over the labelled pixels."""
    pairs = truth.int() * num_classes + predicted.int()
    return _count(pairs, labelled, num_classes**2).view(num_classes, num_classes)


def image_miou(
    predicted: Integer[Tensor, "H W"], truth: Integer[Tensor, "H W"], num_classes: int, ignore_index: int | None
) -> float | None:
    """The mIoU of one image alone, over the classes that show in it; None without a labelled pixel.

    For ranking images. The mean of it over a set is not the set's mIoU.

    Raises:
        LocAtError: a label that is no class and not the ignored one.
    """
    labelled = labelled_pixels(truth, num_classes, ignore_index)
    pixels = confusion_matrix(predicted, truth, labelled, num_classes)
    union = pixels.sum(dim=0) + pixels.sum(dim=1) - pixels.diagonal()
    shows = union > 0
    return float((pixels.diagonal()[shows] / union[shows]).double().mean()) if shows.any() else None


def _count(labels: Tensor, kept: Tensor, num_labels: int) -> Integer[Tensor, " labels"]:
    """How often each label comes among the kept pixels; the others go to a place of their own, which is left out."""
    # faster than to gather the kept ones first
    return torch.where(kept, labels, num_labels).flatten().bincount(minlength=num_labels + 1)[:num_labels]


def _boundary_iou(counts: Integer[Tensor, "3 C"], shows: Bool[Tensor, " C"]) -> list[float | None]:
    """By class; None for one that does not show, or whose pixels lie amid ignored ones, so that it has no edge."""
    of_truth, of_prediction, both = counts
    union = of_truth + of_prediction - both
    iou = zip(both.tolist(), union.tolist(), shows.tolist(), strict=True)
    return [part / whole if shown and whole else None for part, whole, shown in iou]


def _mean(values: Iterable[float | None]) -> float:
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else 0.0
