"""What is done to images, as data; no torch. The defaults are the paper's recipe for ImageNet and ADE20K."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from locatvit.data.checks import as_tuples, check_normalisation, check_positive, check_range, check_share
from locatvit.errors import LocAtError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel, of images in [0, 1]."""
IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
INTERPOLATIONS = ("random", "bilinear", "bicubic", "nearest")

SEGMENTATION_SIZES: dict[str, Any] = {"short_side": 512, "long_side_max": 2048, "crop_size": (512, 512)}
"""Sizes in pixels of the published segmentation protocols, for every data set without sizes of its own."""
_SIZES_OF: dict[str, dict[str, Any]] = {
    "pascal_context": {"short_side": 520, "long_side_max": 520, "crop_size": (480, 480)},
}

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
        as_tuples(self, "crop_scale", "crop_ratio", "mean", "std")
        check_positive("image_size", self.image_size, "pixels")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise LocAtError(
                f"rand_augment is {self.rand_augment!r}; it must be a policy of timm's, such as "
                "'rand-m9-mstd0.5-inc1', or null for none"
            )
        check_share("random_erasing", self.random_erasing)
        check_share("horizontal_flip", self.horizontal_flip)
        check_range("crop_scale", self.crop_scale, most=1.0)
        check_range("crop_ratio", self.crop_ratio)
        if self.interpolation not in INTERPOLATIONS:
            raise LocAtError(f"interpolation is {self.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_fraction <= 1:
            raise LocAtError(f"crop_fraction is {self.crop_fraction}; it must be in (0, 1], 1 for no crop")
        check_normalisation(self.mean, self.std)
        if self.random_crop_padding is not None and self.random_crop_padding < 0:
            raise LocAtError(f"random_crop_padding is {self.random_crop_padding}; it must be 0 or more pixels, or null")


@dataclass(frozen=True)
class SegmentationAugment:
    """Augmentation and evaluation of images with masks. What is null depends on data set and protocol.

    Attributes:
        short_side: images are resized to this short side, the ratio kept, in pixels. Null: 512; PASCAL Context: 520.
        long_side_max: ... unless the long side would be longer than this; then that one decides. Null: 2048;
            PASCAL Context: 520, so that there the long side decides.
        crop_size: (height, width) of the training crop in pixels; what is smaller is padded to it. Null: 512 x 512;
            PASCAL Context: 480 x 480.
        random: draw the five below anew for every image; false resizes and crops the middle, so that an image gives
            the same features every time and they can be kept (``--cache.dir``). It overfits sooner.
        ratio_range: (least, most) factor on both sides, drawn for every training image.
        max_class_share: a crop in which one class has more of the labelled pixels is drawn again, ten times
            at most.
        horizontal_flip: probability.
        photometric: distort brightness, contrast, saturation and hue.
        antialias: smooth images that are made smaller. The published protocols do not.
        mean: per channel, of images in [0, 1]. Null: ImageNet's for every model, as in the paper; under protocol linear
            those that the model was trained with.
        std: per channel, likewise.
    """

    short_side: int | None = None
    long_side_max: int | None = None
    crop_size: tuple[int, int] | None = None
    random: bool = True
    ratio_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    horizontal_flip: float = 0.5
    photometric: bool = True
    antialias: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "ratio_range", "crop_size", "mean", "std")
        sizes = SEGMENTATION_SIZES | self._given()
        check_positive("short_side", sizes["short_side"], "pixels")
        if self.long_side_max is not None and self.long_side_max < sizes["short_side"]:
            raise LocAtError(
                f"long_side_max is {self.long_side_max}; it must be short_side ({sizes['short_side']}) or more"
            )
        check_range("ratio_range", self.ratio_range)
        if len(sizes["crop_size"]) != 2:
            raise LocAtError(f"crop_size is {self.crop_size}; it must be (height, width) in pixels")
        for side in sizes["crop_size"]:
            check_positive("crop_size", side, "pixels a side")
        if not 0 < self.max_class_share <= 1:
            raise LocAtError(f"max_class_share is {self.max_class_share}; it must be in (0, 1], 1 for any crop")
        check_share("horizontal_flip", self.horizontal_flip)
        check_normalisation(sizes.get("mean", IMAGENET_MEAN), sizes.get("std", IMAGENET_STD))

    def resolved(self, data: str | None = None, mean_std: Normalisation | None = None) -> SegmentationAugment:
        """The same with the data set's own settings in the place of what is None.

        Args:
            data: how results call the data set; ``"pascal_context"`` has sizes of its own.
            mean_std: mean and standard deviation in the place of those that are None; ImageNet's by default.

        Raises:
            LocAtError: the long side given is shorter than the short side of the data set.
        """
        mean, std = mean_std or IMAGENET
        own = SEGMENTATION_SIZES | _SIZES_OF.get(data or "", {}) | {"mean": mean, "std": std}
        given = self._given()
        if "short_side" in given and "long_side_max" not in given:
            # a short side of our own makes no sense under another data set's long side
            own["long_side_max"] = max(own["long_side_max"], given["short_side"])
        return replace(self, **(own | given))

    def changed(self, data: str | None = None, mean_std: Normalisation | None = None) -> dict[str, Any]:
        """The settings that are not the published protocols' for this data set, by name; see ``resolved``."""
        frozen = asdict(SegmentationAugment().resolved(data, mean_std))
        mine = asdict(self.resolved(data, mean_std))
        return {name: value for name, value in mine.items() if value != frozen[name]}

    def _given(self) -> dict[str, Any]:
        names = ("short_side", "long_side_max", "crop_size", "mean", "std")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
