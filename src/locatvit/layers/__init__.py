"""Modules with LocAt's weights, and what surrounds them in a block."""

from locatvit.layers.attention import LocalityAttention
from locatvit.layers.current_grid import CurrentGrid
from locatvit.layers.gaug import GAug
from locatvit.layers.refine import PatchRefinement

__all__ = ["CurrentGrid", "GAug", "LocalityAttention", "PatchRefinement"]
