"""Unreadable images: named, counted over all workers, replaced up to a limit."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.data import Dataset

from locatvit.data.images import UnreadableImage
from locatvit.data.spec import DataSpec, ImageDataset
from locatvit.errors import LocAtError

_log = logging.getLogger(__name__)


class TolerantDataset(Dataset[tuple[Any, Any]]):
    """A data set that stands in the next readable image for an unreadable one, up to a limit.

    Every unreadable image is logged by name once and counted once, however often it is met and by whichever
    worker of a DataLoader. Which image stands in depends on the files alone, so runs stay repeatable. In a
    run of several processes each one counts for itself.

    Args:
        dataset: the data set; its items raise ``UnreadableImage`` for such images.
        max_bad_images: how many to bear; one more stops the run.

    Raises:
        LocAtError: from an item, when there are more than ``max_bad_images``: with the names of all so far.
    """

    def __init__(self, dataset: ImageDataset, max_bad_images: int = 0) -> None:
        if max_bad_images < 0:
            raise LocAtError(f"max_bad_images is {max_bad_images}; it must be 0 or more")
        self.dataset = dataset
        self.max_bad_images = max_bad_images
        # one place an image in shared memory: workers need no lock, and none is counted twice
        self._bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    @property
    def spec(self) -> DataSpec:
        """The spec of the wrapped data set."""
        return self.dataset.spec

    @property
    def bad_images(self) -> list[str]:
        """Names of the unreadable images that were met so far."""
        return [self.dataset.describe(index) for index in self._bad.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self._bad[candidate]:
                continue
            try:
                return self.dataset[candidate]
            except UnreadableImage as error:
                self._count(candidate, error)
        raise LocAtError(f"none of the {len(self)} images can be read, the first is {self.dataset.describe(0)}")

    def _count(self, index: int, error: UnreadableImage) -> None:
        self._bad[index] = True
        bad = self.bad_images
        if len(bad) > self.max_bad_images:
            raise LocAtError(
                f"unreadable images: {len(bad)}, more than max_bad_images {self.max_bad_images}: "
                f"{', '.join(bad)}; the last: {error}. Mend or remove them, or raise max_bad_images"
            ) from error
        _log.warning("%s (%d unreadable so far, %d allowed)", error, len(bad), self.max_bad_images)
