"""Models that were made for one image size, switched to take every size, each kind by its own means."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.grid import GridSize, coordinates
from locatvit.transformers_hosts import FitImages, fits_images, only_tower, towers_of, trained_grid

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_SWITCHES = ("strict_img_size", "flatten", "output_fmt", "dynamic_img_pad")


def accept_any_size(model: AnyModule) -> AnyModule:
    """Let a model that was made for one image size take every size, in place; returns the model.

    After it a timm ViT or Swin is as if created with ``dynamic_img_size=True, dynamic_img_pad=True``: positions are
    resampled bicubically at each forward (mixed rotary ones computed, Swin's masks made anew), and an image whose
    size is no multiple of the patch is padded with zeros at its right and lower edge, as in the paper's protocol.
    ConViT's positions are resampled likewise and its relative ones computed; Twins pads to whole patches of its last
    stage; a transformers model is asked for positions of the image's size. No weight changes, nor does the output at
    the model's own size. A model that is dynamic already learns to pad; one of no fixed size (a ConvNet, DaViT) is
    returned as it is.

    Raises:
        LocAtError: the model holds more than that to one size (tables of rotary or relative positions, GCViT).
    """
    host = cast(Any, model)
    if towers_of(model):
        _transformers(host)
    elif hasattr(host, "local_up_to_layer"):  # ConViT
        _convit(host)
    elif hasattr(host, "patch_embeds"):  # Twins
        _pad_before(host.patch_embeds[0], 2 ** (len(host.patch_embeds) + 1))
    elif hasattr(host, "embeds"):  # NaFlexViT
        host.embeds.dynamic_img_pad = True
    elif own_size(host) is not None:
        raise _refusal(host)
    else:
        _timm(host)
    return model


def own_size(model: Any) -> tuple[int, int] | None:
    """(height, width) of the only images that a GCViT takes; None for other models.

    Its global queries are reduced from the whole image to the size of a window, by a number of layers that the size
    decides.
    """
    first = next(iter(getattr(model, "stages", ())), None)
    if not hasattr(first, "global_block"):
        return None
    height, width = cast(Any, first).feat_size
    return 4 * height, 4 * width


def _refusal(model: nn.Module) -> LocAtError:
    return LocAtError(
        f"{type(model).__name__} cannot be switched to other image sizes; create it with img_size=... of your images "
        "(a ViT with dynamic_img_size=True, Swin with strict_img_size=False), or resize the images"
    )


def _timm(model: Any) -> None:
    patch_embed = getattr(model, "patch_embed", None)
    resamples = hasattr(model, "dynamic_img_size") and hasattr(model, "_pos_embed")
    if not resamples and not getattr(patch_embed, "strict_img_size", False):
        return
    in_windows = [module for module in model.modules() if hasattr(module, "dynamic_mask")]
    can_switch = (resamples or in_windows) and all(hasattr(patch_embed, name) for name in _SWITCHES)
    if not can_switch or not _rotates_any_grid(model):
        raise _refusal(model)
    assert patch_embed is not None
    model.dynamic_img_size = True
    for block in in_windows:
        cast(Any, block).dynamic_mask = True
    patch_embed.strict_img_size, patch_embed.flatten, patch_embed.dynamic_img_pad = False, False, True
    # timm's own enumeration, reached without importing timm
    patch_embed.output_fmt = type(patch_embed.output_fmt)("NHWC")


def _rotates_any_grid(model: Any) -> bool:
    """Whether rotary positions, if there are any, are computed for the grid that is asked for, or a kept table."""
    rope = getattr(model, "rope", None)
    if rope is None or model.dynamic_img_size:
        return True
    another = (1, model.patch_embed.num_patches + 1)
    with torch.no_grad():
        return bool(rope.get_embed(another).shape[-2] == another[1])


def _transformers(model: Any) -> None:
    tower, host = only_tower(model)
    height, width = trained_grid(tower)
    if height != width:  # the library takes the root of the number of positions
        raise _refusal(model)
    if not fits_images(tower):
        tower.register_forward_pre_hook(FitImages(tower, host), with_kwargs=True)


class _PadImages:
    """Forward pre-hook on a stem: pads images at their right and lower edge to a multiple."""

    def __init__(self, multiple: int) -> None:
        self.multiple = multiple

    def __call__(self, stem: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = args
        below, right = (-side % self.multiple for side in images.shape[-2:])
        return (F.pad(images, (0, right, 0, below)), *rest)


def _pad_before(stem: nn.Module, multiple: int) -> None:
    if not any(isinstance(hook, _PadImages) for hook in stem._forward_pre_hooks.values()):
        stem.register_forward_pre_hook(_PadImages(multiple))


class _Positions:
    """Forward hook on ConViT's patch embedding: adds the positions, and tells its attentions the distances.

    ConViT adds a table of its own size, and takes every number of patches for a square.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trained_grid: GridSize = tuple(model.patch_embed.grid_size)

    def __call__(self, patch_embed: Any, args: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        grid_size = patch_embed.dynamic_feat_size(args[0].shape[-2:])
        for block in self.model.blocks[: self.model.local_up_to_layer]:
            known = block.attn.rel_indices
            block.attn.rel_indices = _relative(grid_size).to(device=known.device, dtype=known.dtype)
        return tokens + _resampled(self.model.pos_embed, self.trained_grid, grid_size)


def _relative(grid_size: GridSize) -> Float[Tensor, "1 N N 3"]:
    """Of every two patches: how much further right and down the second is, and the squared distance."""
    place = coordinates(grid_size)
    below, right = (place[None, :] - place[:, None]).unbind(-1)
    return torch.stack((right, below, right.square() + below.square()), dim=-1)[None]


def _resampled(table: Float[Tensor, "1 N D"], old: GridSize, new: GridSize) -> Float[Tensor, "1 M D"]:
    """As timm resamples the positions of its ViTs."""
    if old == tuple(new):
        return table
    maps = table.unflatten(1, old).permute(0, 3, 1, 2)
    maps = F.interpolate(maps.float(), size=new, mode="bicubic", antialias=True)
    return maps.flatten(2).transpose(1, 2).to(table.dtype)


def _convit(model: Any) -> None:
    patch_embed = model.patch_embed
    if any(isinstance(hook, _Positions) for hook in patch_embed._forward_hooks.values()):
        return
    if not all(hasattr(patch_embed, name) for name in _SWITCHES) or not model.use_pos_embed:
        raise _refusal(model)
    patch_embed.strict_img_size, patch_embed.dynamic_img_pad = False, True
    patch_embed.register_forward_hook(_Positions(model))
    model.use_pos_embed = False  # the hook adds them
