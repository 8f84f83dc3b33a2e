"""Images and masks as the data sets give them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from locatvit.data.decoding import IMAGE_EXTENSIONS, UnreadableImage, decode_mask, read_image
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import DataSpec
from locatvit.errors import LocAtError

__all__ = ["IMAGE_EXTENSIONS", "UnreadableImage", "read_image", "read_mask"]


def read_mask(path: Path, spec: DataSpec) -> Int64[Tensor, "H W"]:
    """Decode a mask: 8 bits, one channel, pixel = class (of a palette image the index).

    Raises:
        UnreadableImage: the file cannot be decoded.
        LocAtError: several channels, 16 bits, or a value that is neither a class nor ``spec.ignore_index``. Values
            that tell of an off-by-one map are called that.
    """
    mask = decode_mask(path)
    wrong = np.setdiff1d(np.unique(mask), [*range(spec.num_classes), spec.ignore_index])
    if len(wrong):
        raise LocAtError(
            f"mask {path} has the value {wrong[0]}; classes are 0 to {spec.num_classes - 1}, and "
            f"{spec.ignore_index} is ignored. {_remedy(int(wrong[0]), spec)}"
        )
    return torch.from_numpy(mask).long()


def _remedy(value: int, spec: DataSpec) -> str:
    known = SETS.get(spec.name)
    if known is not None:
        anew = f"prepare the data set anew: locatvit data prepare {spec.name} --root OFFICIAL"
        if value == spec.num_classes:
            return f"The labels are off by one ({known.off_by_one}); {anew}"
        return f"These are no labels of {spec.name}; {anew}"
    if value == spec.num_classes:
        return (
            f"The labels may be off by one, 1 to {value} with 0 for no class: then make 0 {spec.ignore_index} and "
            "subtract 1 from the rest. Else add the class to classes.txt"
        )
    if spec.ignore_index is not None and value == spec.ignore_index - 1:
        return (
            f"It may be {spec.ignore_index} less one, shifted together with the classes: then make it "
            f"{spec.ignore_index} again"
        )
    return "Mend the mask or add the class to classes.txt"
