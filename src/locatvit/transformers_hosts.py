"""Where things are in the models of Hugging Face transformers, as data: what LocAt, features and maps read them by.

Nothing here imports the library. The parts of its models have the names below since version 5.19.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.grid import GridSize


@dataclass(frozen=True)
class Host:
    """Where things are in a class of the library.

    Attributes:
        blocks, patch_embedding: from the model; the second is the convolution.
        attention, first_norm: from a block.
        final_norm: from the model.
        num_prefix_tokens: before the patches, registers not counted; the first is [CLS].
        has_registers: whether ``config.num_register_tokens`` come on top.
        is_rotary: whether the queries that the attention function gets are rotated.
        shuffles: whether the patches come in a random order (MAE).
        resamples: whether positions are resampled for another size only when ``interpolate_pos_encoding`` is asked for;
            the others do it by themselves.
    """

    blocks: str = "layers"
    patch_embedding: str = "embeddings.patch_embeddings.projection"
    attention: str = "attention"
    first_norm: str = "layernorm_before"
    final_norm: str = "layernorm"
    num_prefix_tokens: int = 1
    has_registers: bool = False
    is_rotary: bool = False
    shuffles: bool = False
    resamples: bool = False


_VIT = Host(resamples=True)
_DINOV2 = Host(blocks="encoder.layer", first_norm="norm1")
_REGISTERS = Host(blocks="encoder.layer", first_norm="norm1", has_registers=True)
_DINOV3 = Host(
    "model.layer", "embeddings.patch_embeddings", first_norm="norm1", final_norm="norm", has_registers=True,
    is_rotary=True,
)  # fmt: skip
_CLIP = Host(
    "encoder.layers", "embeddings.patch_embedding", "self_attn", "layer_norm1", "post_layernorm", resamples=True
)
_SIGLIP = Host(
    "encoder.layers", "embeddings.patch_embedding", "self_attn", "layer_norm1", "post_layernorm", num_prefix_tokens=0,
    resamples=True,
)  # fmt: skip
HOSTS: dict[str, Host] = {
    "ViTModel": _VIT,
    "DeiTModel": Host(num_prefix_tokens=2, resamples=True),
    "IJepaModel": Host(num_prefix_tokens=0, resamples=True),
    "ViTMAEModel": Host(shuffles=True, resamples=True),
    "BeitModel": Host(),
    "Dinov2Model": _DINOV2,
    "Dinov2Backbone": _DINOV2,
    "Dinov2WithRegistersModel": _REGISTERS,
    "Dinov2WithRegistersBackbone": _REGISTERS,
    "DINOv3ViTModel": _DINOV3,
    "DINOv3ViTBackbone": _DINOV3,
    "CLIPVisionModel": _CLIP,
    "SiglipVisionModel": _SIGLIP,
}
"""Class to its layout. A model may be of such a class, or hold one: a classifier, a model of images and text."""


def towers_of(model: nn.Module) -> list[tuple[Any, Host]]:
    """The parts of a model that are of a class in ``HOSTS``."""
    found = []
    for module in model.modules():
        names = [each.__name__ for each in type(module).__mro__ if each.__module__.startswith("transformers.models.")]
        found.extend([(module, HOSTS[name]) for name in names if name in HOSTS][:1])
    return found


def only_tower(model: nn.Module) -> tuple[Any, Host]:
    """The one part of a model that is of a class in ``HOSTS``.

    Raises:
        LocAtError: there are several.
    """
    towers = towers_of(model)
    if len(towers) != 1:
        names = ", ".join(type(tower).__name__ for tower, _ in towers)
        raise LocAtError(f"{type(model).__name__} holds {names}; give one of them alone")
    return towers[0]


def num_prefix_tokens(tower: Any, host: Host) -> int:
    """Tokens before the patches."""
    return host.num_prefix_tokens + (tower.config.num_register_tokens if host.has_registers else 0)


def image_size(tower: Any) -> tuple[int, int]:
    """(height, width) that the model is made for, in pixels."""
    return _pair(tower.config.image_size)


def patch_size(tower: Any) -> tuple[int, int]:
    """(height, width) of a patch, in pixels."""
    return _pair(tower.config.patch_size)


def trained_grid(tower: Any) -> GridSize:
    """(height, width) that the model is made for, in patches."""
    (height, width), (patch_height, patch_width) = image_size(tower), patch_size(tower)
    return height // patch_height, width // patch_width


class FitImages:
    """Forward pre-hook on a tower: pads images at their right and lower edge, and asks for positions of their size.

    Args:
        tower, host: see ``towers_of``.
    """

    def __init__(self, tower: Any, host: Host) -> None:
        self.patch_size, self.resamples = patch_size(tower), host.resamples

    def __call__(self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        name = "pixel_values"
        images: Tensor = args[0] if args else kwargs[name]
        below, right = (
            (patch - side % patch) % patch  # not -side % patch, which torch.export cannot resolve
            for side, patch in zip(images.shape[-2:], self.patch_size, strict=True)
        )
        fitted = F.pad(images, (0, right, 0, below))
        asked = {"interpolate_pos_encoding": True} if self.resamples else {}
        return ((fitted, *args[1:]), {**kwargs, **asked}) if args else ((), {**kwargs, name: fitted, **asked})


def fits_images(tower: nn.Module) -> bool:
    """Whether ``FitImages`` is on the tower."""
    return any(isinstance(hook, FitImages) for hook in tower._forward_pre_hooks.values())


def run(tower: Any, host: Host, images: Tensor) -> GridSize:
    """Pass images [B, 3, height, width] through a tower, every patch at its place; gives their grid.

    Raises:
        LocAtError: it does not take images of this size as it is, or masks patches.
    """
    size, patch = (images.shape[-2], images.shape[-1]), patch_size(tower)
    if not fits_images(tower):
        held = host.resamples and size != image_size(tower)
        if held or size[0] % patch[0] or size[1] % patch[1]:
            made_for = image_size(tower) if held else f"multiples of its patches' {patch}"
            raise LocAtError(
                f"{type(tower).__name__} refuses images of {size[0]} x {size[1]} pixels: it is made for {made_for}. "
                "Resize the images, or call accept_any_size(model)"
            )
    grid = -(-size[0] // patch[0]), -(-size[1] // patch[1])
    if not host.shuffles:
        tower(images)
        return grid
    if tower.config.mask_ratio > 0:
        raise LocAtError(
            f"mask_ratio is {tower.config.mask_ratio}, so this {type(tower).__name__} drops patches; set "
            "model.config.mask_ratio = 0 (or its keyword mask_ratio=0) to have all of them"
        )
    order = torch.arange(grid[0] * grid[1], dtype=torch.float32, device=images.device)
    tower(images, noise=order.expand(len(images), -1))
    return grid


def _pair(size: Any) -> tuple[int, int]:
    first, second = size if isinstance(size, Iterable) else (size, size)
    return first, second
