"""Images and masks of dense retrieval: crops for the memory, whole images for the queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from locatvit.data.retrieval_config import RetrievalAugment

MaskedTransform = Callable[
    [Image.Image, Int64[Tensor, "H W"]], tuple[Float[Tensor, "3 height width"], Int64[Tensor, "h w"]]
]


def memory_transform(augment: RetrievalAugment) -> MaskedTransform:
    """PIL image and mask to a normalised square and its mask: random crop, jitter, normalise, in the asked order.

    Images are resized bilinearly with antialiasing, masks by nearest neighbour. All draws come from torch's global
    generator, which the loader seeds for every image.

    Args:
        augment: with nothing null; see ``RetrievalAugment.resolved``.
    """
    assert augment.crop_scale is not None
    size = (augment.image_size, augment.image_size)
    crop = v2.RandomResizedCrop(size, scale=augment.crop_scale, ratio=augment.crop_ratio, antialias=True)
    finish = [*_jitter(augment), *_normalise(augment)]
    steps = [v2.ToImage(), crop, *finish] if augment.crop_first else [*finish, crop]
    return _Pair(v2.Compose([*steps, v2.ToPureTensor()]))


def query_transform(augment: RetrievalAugment, stride: int, *, resize_mask: bool) -> MaskedTransform:
    """PIL image and mask to a normalised image, and its mask.

    Args:
        augment: with nothing null; see ``RetrievalAugment.resolved``.
        stride: pixels of a patch. An image that keeps its ratio is resized to the nearest multiple of it, so that
            no backbone need pad.
        resize_mask: resize the mask to the image's new size by nearest neighbour; else it stays as it is.
    """
    resize = _Resize(augment, stride)
    if resize_mask:
        return _Pair(v2.Compose([resize, *_normalise(augment), v2.ToPureTensor()]))
    return _ImageAlone(v2.Compose([resize, *_normalise(augment), v2.ToPureTensor()]))


def _jitter(augment: RetrievalAugment) -> list[v2.Transform]:
    """Each of the four by itself, in this order, each with its own draw."""
    if not augment.jitter:
        return []
    kinds = ("brightness", "contrast", "saturation", "hue")
    return [v2.RandomApply([v2.ColorJitter(**{kind: augment.jitter})], augment.jitter_probability) for kind in kinds]


def _normalise(augment: RetrievalAugment) -> list[v2.Transform]:
    assert augment.mean is not None
    assert augment.std is not None
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [v2.ToImage(), to_float, v2.Normalize(list(augment.mean), list(augment.std))]


class _Pair:
    """Marks the mask as one, so that v2's classes treat it so."""

    def __init__(self, steps: v2.Compose) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.steps(image, tv_tensors.Mask(mask))


class _ImageAlone:
    """Leaves the mask as it is."""

    def __init__(self, steps: v2.Compose) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.steps(image), mask


class _Resize(v2.Transform):
    """To a square, or to a short side with the ratio kept up to the next multiple of the patch."""

    def __init__(self, augment: RetrievalAugment, stride: int) -> None:
        super().__init__()
        self.side, self.stride, self.squash = augment.image_size, stride, augment.query_resize == "squash"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Work out the new (height, width)."""
        height, width = F.get_size(flat_inputs[0])
        if self.squash:
            return {"size": [self.side, self.side]}
        scale = self.side / min(height, width) / self.stride
        return {"size": [self.stride * max(1, int(side * scale + 0.5)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Bilinear with antialiasing for images; torchvision takes the nearest neighbour for masks."""
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)
