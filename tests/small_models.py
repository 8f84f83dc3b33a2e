"""Every registered model, made small enough for a test of a second."""

from __future__ import annotations

from typing import Any

from torch import nn

import locatvit
from locatvit.backbones.registry import MODELS

NAMES = [name for name, model in MODELS.items() if model.has_locat]
"""Models with LocAt."""

_VIT = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
# 12 x 12 and 6 x 6 patches in windows of 3 x 3
_SWIN = {"img_size": 48, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": 3}


def small_kwargs(name: str) -> dict[str, Any]:
    """What makes the model of this name small; 5 classes."""
    return {**(_SWIN if "swin" in name else _VIT), "num_classes": 5}


def image_size(name: str) -> int:
    """The size that ``small_kwargs`` builds for, in pixels."""
    return small_kwargs(name)["img_size"]


def small(name: str, **kwargs: Any) -> nn.Module:
    """A small model of this name."""
    return locatvit.create_model(name, **{**small_kwargs(name), **kwargs})
