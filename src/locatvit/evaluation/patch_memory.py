"""The memory of dense retrieval: patch features with the share of each class among their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.evaluation.hummingbird_config import Unlabelled
from locatvit.features import Features

_LEFT_OUT = -1


@dataclass(frozen=True)
class Memory:
    """Patches with what is known of them.

    Attributes:
        features: of length 1.
        labels: share of each class among the patch's pixels.
    """

    features: Float[Tensor, "M D"]
    labels: Float[Tensor, "M C"]


@dataclass(frozen=True)
class Labels:
    """How masks are read: which classes the memory knows, and what counts as truth.

    Args:
        classes: names of the data set's classes.
        ignore_index: value of the pixels without a label.
        unlabelled: what those are in the memory, see ``HummingbirdConfig``.
    """

    classes: tuple[str, ...]
    ignore_index: int
    unlabelled: Unlabelled

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each class of the memory."""
        return ("(unlabelled)", *self.classes) if self.unlabelled == "extra_class" else self.classes

    @property
    def ignored_truth(self) -> int:
        """The value of ``truth`` that does not count."""
        return 0 if self.unlabelled == "extra_class" else self.ignore_index

    def remembered(self, mask: Integer[Tensor, "*B H W"]) -> Int64[Tensor, "*B H W"]:
        """Classes of the memory; -1 for pixels that it leaves out."""
        value = _LEFT_OUT if self.unlabelled == "left_out" else 0
        return torch.where(mask == self.ignore_index, value, self._shifted(mask))

    def truth(self, mask: Integer[Tensor, "*B H W"]) -> Int64[Tensor, "*B H W"]:
        """Classes of the memory, and ``ignored_truth`` for pixels without a label."""
        return torch.where(mask == self.ignore_index, self.ignored_truth, self._shifted(mask))

    def _shifted(self, mask: Tensor) -> Tensor:
        return mask.long() + 1 if self.unlabelled == "extra_class" else mask.long()


def label_shares(
    labels: Int64[Tensor, "B H W"], grid_size: tuple[int, int], num_classes: int
) -> tuple[Float[Tensor, "B N C"], Bool[Tensor, "B N"]]:
    """The share of each class among the pixels of each patch that have one, and which patches have any.

    Args:
        labels: classes, -1 for pixels that are left out.
        grid_size: (height, width) in patches, which must divide the size of ``labels``.
        num_classes: C.

    Raises:
        LocAtError: the grid does not divide the mask.
    """
    (batch, *size), (rows, columns) = labels.shape, grid_size
    if size[0] % rows or size[1] % columns:
        raise LocAtError(
            f"the mask has {size[0]} x {size[1]} pixels and the backbone {rows} x {columns} patches; image_size must "
            "be a multiple of the patch"
        )
    patch = torch.arange(batch * rows * columns, device=labels.device).view(batch, rows, columns)
    patch = patch.repeat_interleave(size[0] // rows, dim=1).repeat_interleave(size[1] // columns, dim=2)
    bins = batch * rows * columns * num_classes
    place = torch.where(labels == _LEFT_OUT, bins, patch * num_classes + labels)
    counts = place.flatten().bincount(minlength=bins + 1)[:bins].view(batch, rows * columns, num_classes)
    pixels = counts.sum(dim=2, keepdim=True)
    return counts / pixels.clamp(min=1), pixels.squeeze(2) > 0


def sampled(
    shares: Float[Tensor, "B N C"], labelled: Bool[Tensor, "B N"], count: int, sampling: str, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Which patches are kept: ``count`` of each image, or all of its labelled ones where they are fewer.

    Of each image those with the least draw: uniform from 0 to 1, for ``"rare_classes"`` times how many patches of the
    image show the patch's classes, summed (Hummingbird, Appendix).

    Args:
        shares, labelled: see ``label_shares``.
        count: patches an image.
        sampling: ``"rare_classes"`` or ``"uniform"``.
        generator: on the CPU.
    """
    draws = torch.rand(labelled.shape, generator=generator).to(shares.device)
    if sampling == "rare_classes":
        shown = (shares > 0).float()
        draws = draws * (shown * shown.sum(dim=1, keepdim=True)).sum(dim=2)
    draws = draws.masked_fill(~labelled, torch.inf)
    rank = draws.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < count) & labelled


def remember(
    features: Features, labels: Int64[Tensor, "B H W"], num_classes: int, keep: Callable[..., Tensor] | None = None
) -> Memory:
    """The patches of a batch.

    Args:
        features: of the images.
        labels: classes, -1 for pixels that are left out; a patch of such pixels alone is left out too.
        num_classes: C.
        keep: (shares, labelled) to which patches are kept; None keeps all labelled ones.
    """
    shares, labelled = label_shares(labels, features.grid_size, num_classes)
    kept = labelled if keep is None else keep(shares, labelled)
    return Memory(unit(features.patches[kept]), shares[kept].float())


def unit(vectors: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Vectors of length 1, in float32; zero stays zero."""
    return F.normalize(vectors.float(), dim=-1)
