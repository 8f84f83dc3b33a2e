"""The tokens of one layer, from any backbone, in one form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.features import Features

FeaturesFn = Callable[[Tensor], Features]
"""Images ``[B, 3, height, width]`` to their features."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def extract_features(
    model: nn.Module, images: Float[Tensor, "B C height width"], *, layer: int = -1, norm: bool = False
) -> Features:
    """The tokens that ``model`` has for ``images`` after one layer: by default the last block's raw output.

    That is what the paper's dense protocols read: before the final norm, and without PRR, which belongs to
    the head. Training mode and gradients are left as the caller has them; ``frozen`` is for evaluation.

    Args:
        model: any backbone with timm's ``forward_intermediates``: ViTs with and without prefix tokens, Swin,
            ConvNets. Of a backbone that hands out no prefix tokens, ``prefix`` is empty.
        images: normalised as the model wants them.
        layer: block of a ViT, stage of a hierarchical model; negative counts from the end.
        norm: put the tokens through the model's final norm, as far as the model does that for this layer.

    Raises:
        LocAtError: the model has no ``forward_intermediates``, no such layer, no final norm to apply there,
            or does not take images of this size.
    """
    _check_request(model, images, layer)
    # only with prefix tokens: asked without, some of timm's models fail and some answer in another form
    has_prefix = getattr(model, "num_prefix_tokens", 0) > 0 and "return_prefix_tokens" in _options(model)
    options: dict[str, Any] = {"return_prefix_tokens": True} if has_prefix else {}
    with _must_run_final_norm(model, layer) if norm else nullcontext():
        try:
            (taken,) = cast(Any, model).forward_intermediates(
                images,
                indices=[layer],
                norm=norm,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
                **options,
            )
        except AssertionError as error:
            raise LocAtError(
                f"{type(model).__name__} refuses images of {images.shape[-2]} x {images.shape[-1]} pixels: "
                f"{str(error).rstrip('.')}. Resize the images, call accept_any_size(model), or create the "
                "model with dynamic_img_size=True, dynamic_img_pad=True (Swin: strict_img_size=False)"
            ) from error
    patch_map, prefix = taken if has_prefix else (taken, None)
    return _as_features(patch_map, prefix, has_cls=getattr(model, "cls_token", None) is not None)


def _as_features(patch_map: Float[Tensor, "B D h w"], prefix: Float[Tensor, "B P D"] | None, has_cls: bool) -> Features:
    patches = patch_map.flatten(2).transpose(1, 2)
    if prefix is None:
        prefix, has_cls = patches[:, :0], False
    height, width = patch_map.shape[-2:]
    return Features(prefix[:, 0] if has_cls else None, prefix, patches, (height, width))


def frozen_features(model: nn.Module, *, layer: int = -1, norm: bool = False) -> FeaturesFn:
    """``extract_features`` of a backbone that learns nothing: at each call evaluation mode, no gradients."""

    def features(images: Tensor) -> Features:
        with frozen(model):
            return extract_features(model, images, layer=layer, norm=norm)

    return features


@contextmanager
def frozen(model: AnyModule) -> Iterator[AnyModule]:
    """``model`` in evaluation mode and no gradients inside; every module's own mode is put back after.

    ``no_grad`` and not ``inference_mode``: a head can be trained on what comes out.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def accept_any_size(model: AnyModule) -> AnyModule:
    """Let a timm ViT or Swin that was made for one image size take every size, in place; returns the model.

    After it the model is as if created with ``dynamic_img_size=True, dynamic_img_pad=True``: positions are
    resampled bicubically at each forward (mixed rotary ones computed, Swin's masks made anew), and an image whose
    size is no multiple of the patch is padded with zeros at its right and lower edge, as in the paper's protocol. No
    weight changes, nor does the output at the model's own size. A model that is dynamic already learns to pad; one
    of no fixed size (a ConvNet) is returned as it is.

    Raises:
        LocAtError: the model holds more than that to one size (tables of rotary positions).
    """
    patch_embed: Any = getattr(model, "patch_embed", None)
    resamples = hasattr(model, "dynamic_img_size") and hasattr(model, "_pos_embed")
    if not resamples and not getattr(patch_embed, "strict_img_size", False):
        return model
    switches = ("strict_img_size", "flatten", "output_fmt", "dynamic_img_pad")
    in_windows = [module for module in model.modules() if hasattr(module, "dynamic_mask")]
    can_switch = (resamples or in_windows) and all(hasattr(patch_embed, name) for name in switches)
    if not can_switch or not _rotates_any_grid(model):
        raise LocAtError(
            f"{type(model).__name__} cannot be switched to other image sizes; create it with "
            "dynamic_img_size=True (Swin: strict_img_size=False), or resize the images"
        )
    cast(Any, model).dynamic_img_size = True
    for block in in_windows:
        cast(Any, block).dynamic_mask = True
    patch_embed.strict_img_size, patch_embed.flatten, patch_embed.dynamic_img_pad = False, False, True
    # timm's own enumeration, reached without importing timm
    patch_embed.output_fmt = type(patch_embed.output_fmt)("NHWC")
    return model


def _rotates_any_grid(model: Any) -> bool:
    """Whether rotary positions, if there are any, are computed for the grid that is asked for, or a kept table."""
    rope = getattr(model, "rope", None)
    if rope is None or model.dynamic_img_size:
        return True
    another = (1, model.patch_embed.num_patches + 1)
    with torch.no_grad():
        return bool(rope.get_embed(another).shape[-2] == another[1])


def _options(model: nn.Module) -> set[str]:
    return set(inspect.signature(cast(Any, model).forward_intermediates).parameters)


def _check_request(model: nn.Module, images: Tensor, layer: int) -> None:
    if not callable(getattr(model, "forward_intermediates", None)):
        raise LocAtError(
            f"{type(model).__name__} has no forward_intermediates, so its layers cannot be read; use a "
            "timm model, or give the class a method of that name with timm's arguments"
        )
    if images.ndim != 4 or not images.is_floating_point():
        raise LocAtError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; they must be floating point "
            "[B, 3, height, width], normalised as the model wants them"
        )
    depth = len(getattr(model, "feature_info", ()))
    if depth and not -depth <= layer < depth:
        raise LocAtError(
            f"layer is {layer}, but {type(model).__name__} has {depth} layers to read; give one from "
            f"{-depth} to {depth - 1}"
        )


@contextmanager
def _must_run_final_norm(model: nn.Module, layer: int) -> Iterator[None]:
    """Raise unless ``model.norm`` ran inside: models without one pass over ``norm=True`` in silence."""
    final_norm = getattr(model, "norm", None)
    runs: list[bool] = []
    if isinstance(final_norm, nn.Module) and not isinstance(final_norm, nn.Identity):
        handle = final_norm.register_forward_hook(lambda *_: runs.append(True))
        try:
            yield
        finally:
            handle.remove()
    else:
        yield
    if not runs:
        raise LocAtError(
            f"norm is True, but {type(model).__name__} has no final norm to apply after layer {layer} "
            "(a model that pools its patches may keep it behind the pooling); set norm to False"
        )
