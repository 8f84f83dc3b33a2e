"""What dense retrieval does to images, as data; no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from locatvit.data.checks import as_tuples, check_normalisation, check_positive, check_range, check_share
from locatvit.data.config import IMAGENET_MEAN, Normalisation
from locatvit.errors import LocAtError

QueryResize = Literal["keep_ratio", "squash"]

MISTYPED_STD = (0.229, 0.224, 0.255)
"""ImageNet's standard deviations with the authors' slip in the blue one, which is 0.225."""

PRESETS: dict[str, dict[str, Any]] = {
    "hummingbird": {"crop_scale": (0.5, 1.0), "crop_first": True, "query_resize": "keep_ratio"},
    "hummingbird_locat": {
        "crop_scale": (0.5, 2.0),
        "crop_first": False,
        "query_resize": "squash",
        "mean": IMAGENET_MEAN,
        "std": MISTYPED_STD,
    },
}
"""What each protocol of dense retrieval sets where the configuration says nothing."""


@dataclass(frozen=True)
class RetrievalAugment:
    """Images of dense retrieval. What is null follows the protocol; see ``PRESETS``.

    Attributes:
        image_size: side of the square that a training image is cropped to, and of the query: its short side, or
            both where it is squashed. In pixels, a multiple of the patch.
        jitter: brightness, contrast and saturation are multiplied by 1 +- this, hue is turned by up to this.
        jitter_probability: of each of the four, in training images.
        crop_scale: (least, most) share of the area that the random crop of a training image keeps. What does not
            fit is drawn again, ten times, so that the authors' 0.5 to 2 is nearly 0.5 to 1.
        crop_ratio: (least, most) ratio of width to height of that crop.
        crop_first: crop, then jitter, then normalise. The authors' code jitters and normalises before it crops.
        query_resize: "keep_ratio" or "squash", to a square.
        mean: per channel, of images in [0, 1]. Null for the backbone's own, where the protocol has none.
        std: per channel, likewise.

    Raises:
        LocAtError: a value outside its range.
    """

    image_size: int = 224
    jitter: float = 0.1
    jitter_probability: float = 0.5
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_first: bool | None = None
    query_resize: QueryResize | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "crop_scale", "crop_ratio", "mean", "std")
        check_positive("image_size", self.image_size, "pixels")
        if not 0 <= self.jitter <= 0.5:
            raise LocAtError(f"jitter is {self.jitter}; it must be in [0, 0.5], 0 for none")
        check_share("jitter_probability", self.jitter_probability)
        check_range("crop_ratio", self.crop_ratio)
        if self.crop_scale is not None:
            check_range("crop_scale", self.crop_scale)
            if self.crop_scale[0] > 1:
                raise LocAtError(f"crop_scale is {self.crop_scale}; its least share must be 1 or less, or none fits")
        if self.query_resize not in (None, *get_args(QueryResize)):
            raise LocAtError(f"query_resize is {self.query_resize!r}; it must be one of keep_ratio, squash")
        if (self.mean is None) != (self.std is None):
            raise LocAtError(f"mean is {self.mean} and std is {self.std}; give both, or neither")
        if self.mean is not None and self.std is not None:
            check_normalisation(self.mean, self.std)

    def resolved(self, protocol: str, own: Normalisation | None = None) -> RetrievalAugment:
        """The same with everything that was null settled.

        Args:
            protocol: a key of ``PRESETS``.
            own: the backbone's mean and standard deviation, for a protocol that has none; None where it does not tell.

        Raises:
            LocAtError: nobody tells mean and standard deviation.
        """
        preset = (dict(zip(("mean", "std"), own, strict=True)) if own else {}) | PRESETS[protocol]
        if self.mean is None and "mean" not in preset:
            raise LocAtError("the backbone does not tell how its images were normalised; give augment.mean and std")
        return replace(self, **{name: value for name, value in preset.items() if getattr(self, name) is None})

    def changed(self, protocol: str, own: Normalisation | None = None) -> dict[str, Any]:
        """Fields that are not the protocol's, with their values; arguments as of ``resolved``."""
        # where the backbone tells nothing, what is given for it is the protocol's
        given = None if self.mean is None or self.std is None else (self.mean, self.std)
        mine, published = self.resolved(protocol, own), RetrievalAugment().resolved(protocol, own or given)
        found = {field.name: getattr(mine, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value != getattr(published, name)}
