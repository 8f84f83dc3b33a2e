"""What any backbone gives to a protocol."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from locatvit.grid import GridSize


@dataclass(frozen=True)
class Features:
    """Tokens of one layer for a batch of images.

    Attributes:
        cls: the [CLS] token, or None where the backbone has none.
        prefix: all tokens that stand before the patches, [CLS] included.
        patches: patch tokens, row-major over ``grid_size``.
        grid_size: (height, width) in patches.
    """

    cls: Float[Tensor, "B D"] | None
    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B N D"]
    grid_size: GridSize

    @property
    def patch_map(self) -> Float[Tensor, "B D h w"]:
        """The patch tokens as a map, channels first, as a convolution reads it."""
        height, width = self.grid_size
        return self.patches.transpose(1, 2).unflatten(2, (height, width))
