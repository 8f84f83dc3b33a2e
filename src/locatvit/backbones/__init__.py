"""LocAt put into a model: one file a family, and the list of them."""

from locatvit.backbones import timm_vit
from locatvit.backbones.family import Family

BACKBONES: tuple[Family, ...] = (timm_vit.FAMILY,)
"""The only list: ``add_locat`` takes the first family that matches."""

__all__ = ["BACKBONES", "Family"]
