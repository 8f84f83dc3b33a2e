"""What a family of backbones tells ``add_locat``, and what all families need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.grid import GridSize
from locatvit.layers import GAug


@dataclass(frozen=True)
class Family:
    """One family of backbones.

    Attributes:
        name: short, as tables call a plain model and its LocAt twin.
        description: what it holds, for messages.
        matches: whether a model is of this family.
        add: puts LocAt into such a model; raises ``LocAtError`` before it changes anything.
    """

    name: str
    description: str
    matches: Callable[[nn.Module], bool]
    add: Callable[[nn.Module, LocAtConfig], None]


def check_layers(config: LocAtConfig, depth: int) -> None:
    """Raise ``LocAtError`` unless the model has every block of ``config.layers``."""
    if config.layers is not None and not all(0 <= layer < depth for layer in config.layers):
        raise LocAtError(f"layers is {config.layers}; the model's blocks are numbered 0 to {depth - 1}")


def make_gaug(attention: Any, trained_grid: GridSize, config: LocAtConfig) -> GAug:
    """The GAug of an attention, on the device and in the precision of its weights.

    Args:
        attention: with one ``qkv`` projection, or where that is None or missing, with ``q_proj``.
        trained_grid: see ``GAug``.
        config: see ``add_locat``.
    """
    qkv = getattr(attention, "qkv", None)
    projection, num_parts = (attention.q_proj, 1) if qkv is None else (qkv, 3)
    num_outputs, embed_dim = projection.weight.shape
    head_dim = num_outputs // (num_parts * attention.num_heads)
    gaug = GAug(head_dim, trained_grid, config, embed_dim=embed_dim, num_heads=attention.num_heads)
    return gaug.to(device=projection.weight.device, dtype=projection.weight.dtype)
