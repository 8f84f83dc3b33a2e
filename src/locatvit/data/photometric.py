"""Distortion of an image's colours, as in mmsegmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


class PhotometricDistort(v2.Transform):
    """mmsegmentation's distortion, which the paper uses; of images only, in 8 bits.

    Each with probability 1/2, in this order: add to the brightness; multiply all by the contrast (here or, as often,
    at the end); multiply the saturation in HSV; turn the hue. torchvision's distortion mixes with greys instead, and
    multiplies the brightness.

    Args:
        brightness: most that is added or taken away, as a share of white.
        contrast: (least, most) factor.
        saturation: (least, most) factor.
        hue: (least, most) turn, as a share of the circle.
    """

    def __init__(
        self,
        brightness: float = 32 / 255,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: tuple[float, float] = (-0.1, 0.1),
    ) -> None:
        super().__init__()
        self.ranges = {
            "brightness": (-brightness, brightness),
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """What is done, in order: name and amount."""
        contrast_first, *happens = (torch.rand(5) < 0.5).tolist()
        steps = [
            (name, least + (most - least) * torch.rand(()).item())
            for (name, (least, most)), wanted in zip(self.ranges.items(), happens, strict=True)
            if wanted
        ]
        if not contrast_first:
            steps.sort(key=lambda step: step[0] == "contrast")
        return {"steps": steps}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Distort an image; leave a mask."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(Tensor)
        for name, amount in params["steps"]:
            image = _DISTORT[name](image, amount)
        return tv_tensors.wrap(image, like=inpt)


def _brighten(image: Tensor, amount: float) -> Tensor:
    return (image.to(torch.int16) + round(255 * amount)).clamp(0, 255).to(torch.uint8)


def _saturate(image: Tensor, factor: float) -> Tensor:
    """Multiply HSV's saturation: each channel keeps ``factor`` times its distance to the greatest, and is >= 0."""
    colours = image.float()
    greatest, least = colours.amax(dim=-3, keepdim=True), colours.amin(dim=-3, keepdim=True)
    bounded = (greatest / (greatest - least).clamp(min=1e-6)).clamp(max=factor)
    return (greatest - (greatest - colours) * bounded).round().clamp(0, 255).to(torch.uint8)


_DISTORT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": _brighten,
    "contrast": F.adjust_brightness,  # torchvision's name for a plain product
    "saturation": _saturate,
    "hue": F.adjust_hue,
}
