"""What is done to images, as data; no torch. The defaults are the paper's recipe for ImageNet and ADE20K."""

from __future__ import annotations

import re
from dataclasses import dataclass

from locatvit.errors import LocAtError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("random", "bilinear", "bicubic", "nearest")

# timm's policy string: "rand" and sections of a key and a value, e.g. magnitude 9 with standard deviation 0.5
_RAND_AUGMENT = re.compile(r"rand(-(mstd|mmax|inc|m|n|p|w|t)[0-9.a-z]+)*")


@dataclass(frozen=True)
class ClassificationAugment:
    """Augmentation and evaluation of images for classification. Defaults: the paper's ImageNet recipe.

    Attributes:
        image_size: side of the square that the model sees, in pixels.
        rand_augment: timm's RandAugment policy string, or None for none.
        random_erasing: probability of erasing one box, filled with noise.
        crop_scale: (least, most) share of the area that a random-resized crop keeps, in (0, 1].
        crop_ratio: (least, most) ratio of width to height of that crop.
        horizontal_flip: probability.
        interpolation: of the random-resized crop; ``"random"`` draws bilinear or bicubic. Evaluation is
            bicubic.
        crop_fraction: evaluation resizes the short side to ``image_size / crop_fraction`` and crops the
            middle.
        mean: per channel, of images in [0, 1].
        std: per channel, likewise.
        random_crop_padding: pixels of black padding before a random crop of ``image_size``, the CIFAR way, in
            place of the random-resized crop; None keeps the latter.
    """

    image_size: int = 224
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    interpolation: str = "random"
    crop_fraction: float = 0.9
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    random_crop_padding: int | None = None

    def __post_init__(self) -> None:
        _as_tuples(self, "crop_scale", "crop_ratio", "mean", "std")
        _check_positive("image_size", self.image_size, "pixels")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise LocAtError(
                f"rand_augment is {self.rand_augment!r}; it must be a policy of timm's, such as "
                "'rand-m9-mstd0.5-inc1', or null for none"
            )
        _check_share("random_erasing", self.random_erasing)
        _check_share("horizontal_flip", self.horizontal_flip)
        _check_range("crop_scale", self.crop_scale, most=1.0)
        _check_range("crop_ratio", self.crop_ratio)
        if self.interpolation not in INTERPOLATIONS:
            raise LocAtError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_fraction <= 1:
            raise LocAtError(f"crop_fraction is {self.crop_fraction}; it must be in (0, 1], 1 for no crop")
        _check_normalisation(self.mean, self.std)
        if self.random_crop_padding is not None and self.random_crop_padding < 0:
            raise LocAtError(f"random_crop_padding is {self.random_crop_padding}; it must be 0 or more pixels, or null")


@dataclass(frozen=True)
class SegmentationAugment:
    """Augmentation and evaluation of images with masks. Defaults: the paper's ADE20K pipeline.

    Attributes:
        short_side: images are resized to this short side, the ratio kept, in pixels.
        long_side_max: ... unless the long side would be longer than this; then that one decides.
        ratio_range: (least, most) factor on both, drawn for every training image.
        crop_size: (height, width) of the training crop in pixels; what is smaller is padded to it.
        max_class_share: a crop in which one class has more of the labelled pixels is drawn again, ten times
            at most.
        horizontal_flip: probability.
        photometric: distort brightness, contrast, saturation and hue.
        mean: per channel, of images in [0, 1]. The paper uses ImageNet's for every model.
        std: per channel, likewise.
    """

    short_side: int = 512
    long_side_max: int = 2048
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop_size: tuple[int, int] = (512, 512)
    max_class_share: float = 0.75
    horizontal_flip: float = 0.5
    photometric: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _as_tuples(self, "ratio_range", "crop_size", "mean", "std")
        _check_positive("short_side", self.short_side, "pixels")
        if self.long_side_max < self.short_side:
            raise LocAtError(
                f"long_side_max is {self.long_side_max}; it must be short_side ({self.short_side}) or more"
            )
        _check_range("ratio_range", self.ratio_range)
        if len(self.crop_size) != 2:
            raise LocAtError(f"crop_size is {self.crop_size}; it must be (height, width) in pixels")
        for side in self.crop_size:
            _check_positive("crop_size", side, "pixels a side")
        if not 0 < self.max_class_share <= 1:
            raise LocAtError(f"max_class_share is {self.max_class_share}; it must be in (0, 1], 1 for any crop")
        _check_share("horizontal_flip", self.horizontal_flip)
        _check_normalisation(self.mean, self.std)


def _as_tuples(config: object, *names: str) -> None:
    # a YAML file gives lists
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


def _check_positive(name: str, value: int, unit: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise LocAtError(f"{name} is {value}; it must be a whole number of {unit}, 1 or more")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise LocAtError(f"{name} is {value}; it must be a probability in [0, 1]")


def _check_range(name: str, value: tuple[float, ...], most: float = float("inf")) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
        bound = "" if most == float("inf") else f" <= {most:g}"
        raise LocAtError(f"{name} is {value}; it must be (least, most) with 0 < least <= most{bound}")


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise LocAtError(f"mean is {mean} and std is {std}; each must have three numbers, and std positive ones")
