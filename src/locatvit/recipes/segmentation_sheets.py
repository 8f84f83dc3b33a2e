"""Sheets of the images that a segmentation gets most wrong, and most right.

collector = SheetCollector(spec.num_classes, spec.ignore_index)
evaluate_segmentation(..., on_image=collector.update)
collector.write(run_dir, dataset, title="ViT on camvid")      # run_dir/sheets/worst.png and best.png
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from torch import Tensor

from locatvit.data import ImageDataset
from locatvit.data.images import UnreadableImage
from locatvit.errors import LocAtError
from locatvit.evaluation.metrics import image_miou
from locatvit.report.sheets import SheetRow, write_sheet

SHEETS_FOLDER = "sheets"
WORST_FILE, BEST_FILE = "worst.png", "best.png"


@dataclass(order=True)
class _Kept:
    """A prediction in a heap; the least ``rank`` is the first to be given up."""

    rank: tuple[float, int]
    index: int = field(compare=False)
    score: float = field(compare=False)
    prediction: Integer[np.ndarray, "H W"] = field(compare=False)


class SheetCollector:
    """Keeps the predictions of the best and the worst images while a set is measured, and no others.

    Images are ranked by their own mIoU; of equal ones the earlier goes first. An image without a labelled pixel has no
    score and takes no part.

    Args:
        num_classes: C.
        ignore_index: label of the pixels that do not count; None counts all.
        num_images: images a sheet, at most. The collector holds twice as many predictions.

    Raises:
        LocAtError: ``num_images`` below 1.
    """

    def __init__(self, num_classes: int, ignore_index: int | None, num_images: int = 5) -> None:
        if num_images < 1:
            raise LocAtError(f"num_images is {num_images}; a sheet needs 1 or more")
        self.num_classes, self.ignore_index, self.num_images = num_classes, ignore_index, num_images
        self._worst: list[_Kept] = []
        self._best: list[_Kept] = []
        self._num_scored = 0

    def update(self, index: int, predicted: Integer[Tensor, "H W"], truth: Integer[Tensor, "H W"]) -> None:
        """Take note of one image; to be given to ``evaluate_segmentation`` as ``on_image``.

        Args:
            index: its place in the data set that ``write`` gets.
            predicted, truth: classes at the label's size, on any device.
        """
        score = image_miou(predicted, truth, self.num_classes, self.ignore_index)
        if score is None:
            return
        self._num_scored += 1
        for heap, rank in ((self._worst, (-score, -index)), (self._best, (score, -index))):
            if len(heap) < self.num_images or rank > heap[0].rank:
                # 8 bits hold every class of a mask, and a view of the batch would keep all of it
                kept = _Kept(rank, index, score, predicted.cpu().numpy().astype(np.uint8))
                (heapq.heappush if len(heap) < self.num_images else heapq.heapreplace)(heap, kept)

    def write(self, folder: Path, dataset: ImageDataset, title: str = "") -> list[Path]:
        """Write ``folder/sheets/worst.png`` and ``best.png``, and return their paths.

        Of a set with fewer than twice ``num_images`` images each sheet has one half; a set without any score has no
        sheets.

        Args:
            folder: the run's.
            dataset: the data set that was measured, without a transform: items are ``(PIL image, mask [H, W])``. An
                image that cannot be read now is left out, as it was another that stood in for it.
            title: what both sheets are headed with, e.g. model and data.
        """
        count = min(self.num_images, max(1, self._num_scored // 2))
        written = []
        for name, heap, words in ((WORST_FILE, self._worst, "worst"), (BEST_FILE, self._best, "best")):
            kept = sorted(heap, reverse=True)[:count]
            rows = [row for row in (_row(dataset, one) for one in kept) if row is not None]
            if rows:
                heading = f"{title}: {words} images" if title else f"{words} images".capitalize()
                path = Path(folder) / SHEETS_FOLDER / name
                spec = dataset.spec
                written.append(write_sheet(path, rows, spec.classes, spec.colours, heading, spec.ignore_index))
        return written


def _row(dataset: ImageDataset, kept: _Kept) -> SheetRow | None:
    try:
        image, truth = dataset[kept.index]
    except UnreadableImage:
        return None
    name = Path(dataset.describe(kept.index)).name
    return SheetRow(name, np.asarray(image), truth.numpy(), kept.prediction, kept.score)
