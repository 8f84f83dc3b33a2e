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
from locatvit.evaluation.any_size import accept_any_size, own_size
from locatvit.features import Features
from locatvit.transformers_hosts import Host, num_prefix_tokens, only_tower, run, towers_of

__all__ = ["FeaturesFn", "accept_any_size", "extract_features", "frozen", "frozen_features"]

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
        model: any backbone with timm's ``forward_intermediates``: ViTs with and without prefix tokens, Swin, Twins,
            ConvNets. Of a backbone that hands out no prefix tokens, ``prefix`` is empty. Or a transformers model that
            is or holds one of ``locatvit.transformers_hosts.HOSTS``.
        images: normalised as the model wants them.
        layer: block of a ViT, stage of a hierarchical model; negative counts from the end.
        norm: put the tokens through the model's final norm, as far as the model does that for this layer.

    Raises:
        LocAtError: the model is of neither kind, or it has no such layer, no final norm to apply there, or does not
            take images of this size.
    """
    _check_images(images)
    if callable(getattr(model, "forward_intermediates", None)):
        return _of_timm(model, images, layer, norm)
    if towers_of(model):
        return _of_transformers(*only_tower(model), images, layer, norm)
    raise LocAtError(
        f"{type(model).__name__} has no forward_intermediates, so its layers cannot be read; use a timm model, one of "
        "transformers' ViT family, or give the class a method of that name with timm's arguments"
    )


def _of_timm(model: nn.Module, images: Tensor, layer: int, norm: bool) -> Features:
    _check_layer(model, layer, len(getattr(model, "feature_info", ())))
    # only with prefix tokens: asked without, some of timm's models fail and some answer in another form
    has_prefix = getattr(model, "num_prefix_tokens", 0) > 0 and "return_prefix_tokens" in _options(model)
    options: dict[str, Any] = {"return_prefix_tokens": True} if has_prefix else {}
    if own_size(model) not in (None, tuple(images.shape[-2:])):
        raise _refused(model, images, f"it takes {own_size(model)} alone")
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
            raise _refused(model, images, str(error).rstrip(".")) from error
    patch_map, prefix = taken if has_prefix else (taken, None)
    has_cls = getattr(getattr(model, "embeds", model), "cls_token", None) is not None  # NaFlexViT has it in embeds
    return _as_features(patch_map, prefix, has_cls=has_cls)


def _refused(model: nn.Module, images: Tensor, reason: str) -> LocAtError:
    return LocAtError(
        f"{type(model).__name__} refuses images of {images.shape[-2]} x {images.shape[-1]} pixels: {reason}. Resize "
        "the images, call accept_any_size(model), or create the model with img_size=... of them, or with "
        "dynamic_img_size=True, dynamic_img_pad=True (Swin: strict_img_size=False)"
    )


def _of_transformers(tower: Any, host: Host, images: Tensor, layer: int, norm: bool) -> Features:
    blocks = tower.get_submodule(host.blocks)
    _check_layer(tower, layer, len(blocks))
    final_norm = tower.get_submodule(host.final_norm)
    if norm and isinstance(final_norm, nn.Identity):
        raise _no_norm(tower, layer)
    taken: list[Tensor] = []
    handle = blocks[layer].register_forward_hook(
        lambda block, args, out: taken.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        grid_size = run(tower, host, images)
    finally:
        handle.remove()
    tokens = final_norm(taken[0]) if norm else taken[0]
    prefix, patches = tokens.tensor_split((num_prefix_tokens(tower, host),), dim=1)
    return Features(prefix[:, 0] if host.num_prefix_tokens else None, prefix, patches, grid_size)


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


def _options(model: nn.Module) -> set[str]:
    return set(inspect.signature(cast(Any, model).forward_intermediates).parameters)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise LocAtError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; they must be floating point "
            "[B, 3, height, width], normalised as the model wants them"
        )


def _check_layer(model: nn.Module, layer: int, depth: int) -> None:
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
        raise _no_norm(model, layer)


def _no_norm(model: nn.Module, layer: int) -> LocAtError:
    return LocAtError(
        f"norm is True, but {type(model).__name__} has no final norm to apply after layer {layer} "
        "(a model that pools its patches may keep it behind the pooling); set norm to False"
    )
