"""What a family of backbones tells ``add_locat``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from locatvit.config import LocAtConfig


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
