"""CamVid (Brostow et al. 2009) in SegNet's form (Badrinarayanan et al. 2017): 11 classes, 360x480 pixels."""

from __future__ import annotations

from typing import ClassVar

from locatvit.data.named_sets import NamedSet
from locatvit.data.segmentation_sets import SETS

CLASSES = SETS["camvid"].classes


class CamVid(NamedSet):
    """367 training and 101 validation frames, 255 = unlabelled; see ``NamedSet``."""

    set_name: ClassVar[str] = "camvid"
