"""Scores where predicted classes may be renamed first, as for clusters: what Hummingbird's published numbers are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from locatvit.errors import LocAtError
from locatvit.evaluation.metrics import SegmentationScores, confusion_matrix, labelled_pixels


class MatchedMetrics:
    """mIoU, per-class IoU and pixel accuracy over the whole set, with a choice of who is compared with whom.

    Args:
        class_names: a name for each label, from 0.
        ignore_index: pixels whose truth is this label count nowhere.
        matching: ``"identity"``, or ``"hungarian"``: predicted classes are renamed one to one, so that the sum of
            the IoUs over the whole set is the largest.
        mean_over: ``"all"`` counts a class that shows in neither prediction nor truth, or that is itself the ignored
            label, as 0; ``"shown"`` leaves it out.
        device: where the counts lie.

    Raises:
        LocAtError: ``"hungarian"`` without scipy.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int | None,
        *,
        matching: str = "hungarian",
        mean_over: str = "all",
        device: torch.device | str = "cpu",
    ) -> None:
        if matching == "hungarian" and importlib.util.find_spec("scipy") is None:
            raise LocAtError(
                "matching is 'hungarian', which needs scipy; install it (pip install 'locatvit[data]') or set "
                "matching to 'identity'"
            )
        self.class_names, self.ignore_index = tuple(class_names), ignore_index
        self.matching, self.mean_over = matching, mean_over
        self._counts = torch.zeros(len(self.class_names), len(self.class_names), dtype=torch.long, device=device)

    def update(self, predicted: Integer[Tensor, "B H W"], truth: Integer[Tensor, "B H W"]) -> None:
        """Count the pixels of a batch.

        Raises:
            LocAtError: a label of ``truth`` is no class and not the ignored one.
        """
        num_classes = len(self.class_names)
        labelled = labelled_pixels(truth, num_classes, self.ignore_index)
        self._counts += confusion_matrix(predicted, truth, labelled, num_classes)

    def compute(self) -> SegmentationScores:
        """The scores of all that was counted; ``miou_unmatched`` too, where predicted classes were renamed.

        Raises:
            LocAtError: not one labelled pixel was counted.
        """
        counts = self._counts.cpu()
        if not counts.any():
            raise LocAtError(
                f"no labelled pixel: the set is empty, or every pixel is ignore_index {self.ignore_index}; "
                "check the annotations' folder"
            )
        unmatched, _ = self._scores(counts)
        if self.matching == "identity":
            return self._scores(counts)
        scores, per_class = self._scores(counts[:, hungarian(counts)])
        return scores | {"miou_unmatched": unmatched["miou"]}, per_class

    def _scores(self, counts: Int64[Tensor, "C C"]) -> SegmentationScores:
        union = counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()
        iou = counts.diagonal() / union.clamp(min=1).double()
        shows = union > 0
        if self.ignore_index is not None and 0 <= self.ignore_index < len(shows):
            shows[self.ignore_index] = False
        counted = iou if self.mean_over == "all" else iou[shows]
        per_class = {
            name: value if shown else None
            for name, value, shown in zip(self.class_names, iou.tolist(), shows.tolist(), strict=True)
        }
        accuracy = int(counts.diagonal().sum()) / int(counts.sum())
        return {"miou": float(counted.mean()), "pixel_accuracy": accuracy}, per_class


def hungarian(counts: Int64[Tensor, "C C"]) -> Int64[Tensor, " C"]:
    """For each true class the predicted class that is taken for it, one to one, for the largest sum of IoUs.

    Args:
        counts: pixels, row = truth, column = prediction.
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(_pairwise_iou(counts).numpy(), maximize=True)
    return torch.from_numpy(columns).long()


def _pairwise_iou(counts: Int64[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    union = counts.sum(dim=0) + counts.sum(dim=1, keepdim=True) - counts
    return counts / union.clamp(min=1).double()
