"""Which grid the tokens that are now in the model came from."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from locatvit.errors import LocAtError
from locatvit.grid import GridSize, check_grid

# One thread's forward pass does not see another's grid.
_of_this_context: ContextVar[tuple[object, GridSize] | None] = ContextVar("locatvit_grid", default=None)


class CurrentGrid:
    """Tells every attention of one model the grid of the present forward pass.

    An attention sees [B, L, D] and cannot tell 14 x 14 from 7 x 28. The host's patch embedding sees the image: a
    forward hook on it, installed by the backbone's adapter, calls ``record``. Gradient checkpointing runs blocks
    again after other images may have passed: a forward pre-hook on each block calls ``enter``, which knows the tokens
    that entered it once. Where neither helps, the last grid of each number of patches does.
    """

    def __init__(self) -> None:
        self._key = object()  # not id(self), which another one may have later
        self._latest: GridSize | None = None
        self._by_num_patches: dict[int, GridSize] = {}
        self._by_tokens: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def record(self, grid_size: GridSize) -> None:
        """Remember the grid of the images that enter the model now."""
        self._latest = grid_size
        if not torch.compiler.is_compiling():
            self._by_num_patches[grid_size[0] * grid_size[1]] = grid_size
            _of_this_context.set((self._key, grid_size))

    def enter(self, tokens: Tensor) -> None:
        """A block begins with these tokens, for the first time or, in a backward pass, once more."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        known = self._by_tokens.get(tokens)
        if known is not None:
            _of_this_context.set((self._key, known))
            return
        context = _of_this_context.get()
        if context is not None and context[0] is self._key:
            self._by_tokens[tokens] = context[1]

    def of(self, num_patches: int, num_prefix_tokens: int) -> GridSize:
        """The grid of ``num_patches`` patches.

        Raises:
            LocAtError: no image with so many patches has passed; the prefix tokens are miscounted, or tokens dropped.
        """
        if torch.compiler.is_compiling():
            assert self._latest is not None
            return self._latest
        context = _of_this_context.get()
        if context is not None and context[0] is self._key and context[1][0] * context[1][1] == num_patches:
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

    def __reduce__(self) -> tuple[type[CurrentGrid], tuple[()]]:
        return CurrentGrid, ()  # a copy has seen no images
