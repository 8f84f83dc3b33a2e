"""Which grid the tokens that are now in the model came from."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch

from locatvit.errors import LocAtError
from locatvit.grid import GridSize, check_grid

# One thread's forward pass does not see another's grid.
_of_this_context: ContextVar[tuple[int, GridSize] | None] = ContextVar("locatvit_grid", default=None)


class CurrentGrid:
    """Tells every attention of one model the grid of the present forward pass.

    An attention sees [B, L, D] and cannot tell 14 x 14 from 7 x 28. The host's patch embedding sees the image: a
    forward hook on it, installed by the backbone's adapter, calls ``record``. Gradient checkpointing runs blocks
    again after other images may have passed, so the last grid of each number of patches is remembered.
    """

    def __init__(self) -> None:
        self._latest: GridSize | None = None
        self._by_num_patches: dict[int, GridSize] = {}

    def record(self, grid_size: GridSize) -> None:
        """Remember the grid of the images that enter the model now."""
        self._latest = grid_size
        if not torch.compiler.is_compiling():
            self._by_num_patches[grid_size[0] * grid_size[1]] = grid_size
            _of_this_context.set((id(self), grid_size))

    def of(self, num_patches: int, num_prefix_tokens: int) -> GridSize:
        """The grid of ``num_patches`` patches.

        Raises:
            LocAtError: no image with so many patches has passed; the prefix tokens are miscounted, or tokens dropped.
        """
        if torch.compiler.is_compiling():
            assert self._latest is not None
            return self._latest
        context = _of_this_context.get()
        if context is not None and context[0] == id(self) and context[1][0] * context[1][1] == num_patches:
            return context[1]
        if num_patches in self._by_num_patches:
            return self._by_num_patches[num_patches]
        if self._latest is None:
            raise LocAtError(
                f"an attention with GAug got {num_patches} patches before any image passed the patch embedding; "
                "call the model, or its forward_features, on images"
            )
        check_grid(self._latest, num_patches, num_prefix_tokens)
        return self._latest

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
