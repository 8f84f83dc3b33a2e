"""LocAt put into a model: one file a family, and the list of them."""

import timm  # noqa: F401  (first: its import runs registry.py, which wants the files below whole)

from locatvit.backbones import jumbo, timm_beit, timm_naflex, timm_rope, timm_swin, timm_vit, transformers
from locatvit.backbones.family import Family

BACKBONES: tuple[Family, ...] = (
    jumbo.FAMILY,
    timm_vit.FAMILY,
    timm_rope.FAMILY,
    timm_swin.FAMILY,
    timm_beit.FAMILY,
    timm_naflex.FAMILY,
    transformers.FAMILY,
)
"""The only list: ``add_locat`` takes the first family that matches."""

__all__ = ["BACKBONES", "Family"]
