"""From a decoded image to what a model reads: timm's transforms; torchvision's v2 for masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.data.photometric import PhotometricDistort
from locatvit.data.spec import IGNORE_INDEX

_CROP_TRIES = 11


def classification_transform(
    augment: ClassificationAugment, training: bool
) -> Callable[[Image.Image], Float[Tensor, "3 H W"]]:
    """PIL image to normalised tensor, with timm's transforms.

    Training: crop, flip, RandAugment, normalise, random erasing. Evaluation: resize the short side to
    ``image_size / crop_fraction`` (bicubic), crop the middle, normalise.
    """
    size = augment.image_size
    if not training:
        return create_transform(
            size, interpolation="bicubic", crop_pct=augment.crop_fraction, mean=augment.mean, std=augment.std
        )
    crop_and_flip, augmentation, finish = create_transform(
        size,
        is_training=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        hflip=augment.horizontal_flip,
        color_jitter=None,
        auto_augment=augment.rand_augment,
        interpolation=augment.interpolation,
        mean=augment.mean,
        std=augment.std,
        re_prob=augment.random_erasing,
        re_mode="pixel",
        separate=True,
    )
    if augment.random_crop_padding is not None:
        crop_and_flip = v2.Compose(
            [
                v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomCrop(size, padding=augment.random_crop_padding),
                v2.RandomHorizontalFlip(augment.horizontal_flip),
            ]
        )
    return v2.Compose([crop_and_flip, augmentation, finish])


def segmentation_transform(
    augment: SegmentationAugment, training: bool, ignore_index: int = IGNORE_INDEX
) -> Callable[[Image.Image, Int64[Tensor, "H W"]], tuple[Float[Tensor, "3 h w"], Int64[Tensor, "h w"]]]:
    """PIL image and mask to normalised tensor and mask.

    Training follows the paper's pipeline: resize by a random ratio, crop with a bound on one class, flip,
    photometric distortion, normalise, and only then pad (image 0, mask ``ignore_index``) to ``crop_size`` at
    the bottom and the right. Without ``augment.random``: resize, crop the middle, normalise, pad. Images are resized
    bilinearly, masks by nearest neighbour. Evaluation resizes the image alone: the mask keeps its own size, at which
    the metric is taken.

    Args:
        augment: what it leaves open is as for a data set without sizes of its own.
        training: which of the two.
        ignore_index: the mask's value where there is padding.
    """
    value = asdict(augment.resolved())
    size = value["crop_size"]
    normalise = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
    normalise += [v2.Normalize(list(value["mean"]), list(value["std"]))]
    still = ResizeWithin(value["short_side"], value["long_side_max"], antialias=augment.antialias)
    if not training:
        return _Evaluation(v2.Compose([v2.ToImage(), still, *normalise, v2.ToPureTensor()]))
    steps = [
        ResizeWithin(value["short_side"], value["long_side_max"], augment.ratio_range, antialias=augment.antialias),
        ClassShareCrop(size, augment.max_class_share, ignore_index),
        v2.RandomHorizontalFlip(augment.horizontal_flip),
        *([PhotometricDistort()] if augment.photometric else []),
    ]
    if not augment.random:
        steps = [still, MiddleCrop(size)]
    return _Training(v2.Compose([v2.ToImage(), *steps, *normalise, PadTo(size, ignore_index), v2.ToPureTensor()]))


class _Training:
    """Marks the mask as one, so that v2's classes treat it so."""

    def __init__(self, steps: v2.Compose) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.steps(image, tv_tensors.Mask(mask))


class _Evaluation:
    """Leaves the mask as it is."""

    def __init__(self, steps: v2.Compose) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.steps(image), mask


class ResizeWithin(v2.Transform):
    """Resize, the ratio kept, to the largest size within a short and a long side, both times a drawn ratio.

    v2 has no such class: ``RandomShortestSize`` keeps its long side fixed where the paper's scales both.
    """

    def __init__(
        self,
        short_side: int,
        long_side: int,
        ratio_range: tuple[float, float] = (1.0, 1.0),
        *,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.short_side, self.long_side, self.ratio_range = short_side, long_side, ratio_range
        self.antialias = antialias

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the ratio and work out the new (height, width)."""
        height, width = F.get_size(flat_inputs[0])
        least, most = self.ratio_range
        ratio = least + (most - least) * torch.rand(()).item() if least < most else least
        short_side, long_side = (max(1, int(side * ratio)) for side in (self.short_side, self.long_side))
        scale = min(short_side / min(height, width), long_side / max(height, width))
        return {"size": [max(1, int(side * scale + 0.5)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Bilinear for images; torchvision takes the nearest neighbour for masks."""
        return self._call_kernel(F.resize, inpt, params["size"], antialias=self.antialias)


class ClassShareCrop(v2.Transform):
    """Random crop in which no class has more than a share of the labelled pixels.

    A crop that breaks the bound is drawn again, ten times at most; then the last one is taken. An image that is
    smaller than the crop in one direction is kept whole in it.
    """

    def __init__(self, size: tuple[int, int], max_class_share: float, ignore_index: int) -> None:
        super().__init__()
        self.size, self.max_class_share, self.ignore_index = size, max_class_share, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw top and left of a crop that keeps the bound."""
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        height, width = (min(crop, side) for crop, side in zip(self.size, mask.shape[-2:], strict=True))
        for _ in range(_CROP_TRIES):
            top = int(torch.randint(mask.shape[-2] - height + 1, ()))
            left = int(torch.randint(mask.shape[-1] - width + 1, ()))
            if self.max_class_share == 1 or self._is_mixed(mask[top : top + height, left : left + width]):
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def _is_mixed(self, mask: Tensor) -> bool:
        counts = mask[mask != self.ignore_index].bincount()
        return len(counts) > 0 and int(counts.max()) <= self.max_class_share * int(counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop image and mask alike."""
        return self._call_kernel(F.crop, inpt, **params)


class MiddleCrop(v2.Transform):
    """The middle (height, width) of image and mask; what is smaller in one direction is kept whole in it."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Top and left of the middle."""
        sides = F.get_size(flat_inputs[0])
        height, width = (min(crop, side) for crop, side in zip(self.size, sides, strict=True))
        return {"top": (sides[0] - height) // 2, "left": (sides[1] - width) // 2, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop image and mask alike."""
        return self._call_kernel(F.crop, inpt, **params)


class PadTo(v2.Transform):
    """Pad at the bottom and the right to (height, width): images with 0, masks with ``ignore_index``."""

    def __init__(self, size: tuple[int, int], ignore_index: int) -> None:
        super().__init__()
        self.size, self.ignore_index = size, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """How much is missing."""
        height, width = F.get_size(flat_inputs[0])
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad with the value of the kind."""
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else 0
        return self._call_kernel(F.pad, inpt, params["padding"], fill=fill)
