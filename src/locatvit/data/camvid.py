"""CamVid (Brostow et al. 2009) in SegNet's form (Badrinarayanan et al. 2017): 11 classes, 360x480 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from locatvit.data.segmentation_folder import SegmentationFolder
from locatvit.data.spec import Split
from locatvit.errors import LocAtError

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
IMAGE_SIZE = (360, 480)


class CamVid(SegmentationFolder):
    """A segmentation folder that holds CamVid: 367 training and 101 validation frames, 255 = unlabelled.

    Args:
        split: ``"train"`` or ``"val"``.
        root: the folder with ``images``, ``annotations`` and ``classes.txt``.
        transform: ``(PIL image, int64 mask [H, W])`` to what an item shall be.

    Raises:
        LocAtError: as ``SegmentationFolder``, or the classes are not CamVid's.
    """

    def __init__(self, split: Split, root: Path | None, transform: Callable[..., Any] | None = None) -> None:
        super().__init__(split, root, transform, name="camvid", image_size=IMAGE_SIZE)
        if self.spec.classes != CLASSES:
            raise LocAtError(
                f"{root}/classes.txt has {self.spec.num_classes} classes ({self.spec.classes[0]}, ...), "
                f"not CamVid's {len(CLASSES)} ({CLASSES[0]}, ...); open it as data set 'folder'"
            )
