"""The backbone that a protocol reads: of a training run, or as it is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from locatvit.backbones.checkpoint import weights_digest
from locatvit.data.config import Normalisation, SegmentationAugment
from locatvit.errors import LocAtError
from locatvit.evaluation.any_size import accept_any_size, own_size
from locatvit.evaluation.config import SegmentationConfig
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.folder import plain_data, read_config
from locatvit.recipes.run import describe_model, read_run_model

_log = logging.getLogger(__name__)


def backbone_config(backbone: Path | None, model: ModelConfig) -> ModelConfig:
    """The backbone's model and weights, from the run's folder or as they are given.

    Args:
        backbone: folder of a training run, or None.
        model: what is given besides.

    Raises:
        LocAtError: both are given, or the run has not ended.
    """
    if backbone is None:
        if model.checkpoint is None and not model.pretrained:
            _log.warning(
                "the backbone %s has random weights; give trained ones by --backbone, --model.checkpoint or "
                "--model.pretrained", model.name,
            )  # fmt: skip
        return model
    found = read_run_model(backbone)
    if model not in (ModelConfig(), found):
        raise LocAtError(
            f"backbone is {backbone}, whose model is {found.name}, and model is given too; give one of them"
        )
    return found


def describe_backbone(model: nn.Module, config: ModelConfig, backbone: Path | None) -> dict[str, Any]:
    """A result's ``model``, with the digest of the weights and the run they are from."""
    described = describe_model(model, config) | {"weights": weights_digest(model)}
    return described if backbone is None else described | {"checkpoint_run": backbone.resolve().name}


def config_with_backbone(run: Any, backbone: Path | None) -> dict[str, Any]:
    """A run's configuration for its result, with the backbone's own training in the place of its folder."""
    config: dict[str, Any] = plain_data(run)
    return config if backbone is None else config | {"backbone": read_config(backbone).get("training")}


def own_normalisation(model: nn.Module, backbone: Path | None) -> Normalisation | None:
    """Mean and standard deviation of the images that the backbone was trained on.

    Those of its training run; else of timm's configuration of the model; None where neither tells.
    """
    told: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if backbone is not None:
        told = read_config(backbone).get("augment") or told
    if "mean" not in told or "std" not in told:
        return None
    red, green, blue = zip(told["mean"], told["std"], strict=True)
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def last_fine_layer(model: nn.Module, most_pixels: int = 16) -> int:
    """The last layer whose patches are ``most_pixels`` or finer, counted from the end: -1 is the last.

    A ViT's layers are all of one kind; of Swin it is the third stage. -1 where the model does not tell, or has
    none so fine.
    """
    told = list(getattr(model, "feature_info", ()))
    fine = [
        place for place, info in enumerate(told) if isinstance(info, dict) and info.get("reduction", 0) <= most_pixels
    ]
    return fine[-1] - len(told) if fine else -1


def accept_sizes(model: nn.Module, only: tuple[int, int] | None) -> nn.Module:
    """Switch a backbone to every image size, unless it will see its own alone; returns it.

    Args:
        model: in place.
        only: (height, width) of all images, None where they differ.

    Raises:
        LocAtError: it must see other sizes and cannot; see ``accept_any_size``.
    """
    own = own_size(model) or getattr(getattr(model, "patch_embed", None), "img_size", None)
    return model if only is not None and own == only else accept_any_size(model)


def only_size(protocol: SegmentationConfig, augment: SegmentationAugment) -> tuple[int, int] | None:
    """(height, width) of all that a segmentation run shows its backbone: crops and windows; None where they differ.

    Args:
        protocol, augment: resolved.
    """
    side = protocol.window_size or 0
    fits = augment.crop_size == (side, side) and (augment.short_side or 0) >= side
    return (side, side) if side and fits else None
