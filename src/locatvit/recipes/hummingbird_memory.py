"""The memory of a run of dense retrieval, made part by part and kept on the disk, so that it can be resumed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from locatvit.data.loader import Loader
from locatvit.errors import LocAtError
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.evaluation.patch_memory import Memory
from locatvit.storage import atomic_write

MEMORY_FOLDER = "memory"
# images between two parts on the disk, at least
_IMAGES_A_PART = 1024

_log = logging.getLogger(__name__)

Remember = Callable[[Tensor, Tensor, int], Memory]
"""(images, masks, a number that no other batch of the run has) to what is remembered of them."""


class MemoryParts:
    """Makes the memory of a loader's images, and keeps each part on the disk until ``clear``.

    Args:
        run_dir: the run's folder.
        key: what the memory depends on, as text; parts of another key are made anew.
        loader: the training images, in order.
        epochs: passes over them.
    """

    def __init__(self, run_dir: Path, key: str, loader: Loader, epochs: int) -> None:
        self._folder, self._key, self._loader = Path(run_dir) / MEMORY_FOLDER, key, loader
        assert loader.batch_size is not None
        step = -(-_IMAGES_A_PART // loader.batch_size)
        self._spans = [
            (epoch, first, min(first + step, len(loader)))
            for epoch in range(epochs)
            for first in range(0, len(loader), step)
        ]

    @property
    def num_batches(self) -> int:
        """Of all parts together."""
        return sum(last - first for _, first, last in self._spans)

    def build(self, remember: Remember, most_rows: int, progress: Callable[[int], None]) -> Memory:
        """The whole memory.

        Args:
            remember: what makes memory of a batch.
            most_rows: more rows than this it cannot have; room is made for them once.
            progress: called with the number of batches done.

        Raises:
            LocAtError: nothing in it: no training image has a labelled pixel.
        """
        held: Memory | None = None
        rows = done = 0
        for span in self._spans:
            part = self._read(span) or self._make(span, remember, done, progress)
            if held is None:
                held = Memory(*(kind.new_empty(most_rows, kind.shape[1]) for kind in (part.features, part.labels)))
            held.features[rows : rows + len(part.features)] = part.features
            held.labels[rows : rows + len(part.labels)] = part.labels
            rows += len(part.features)
            done += span[2] - span[1]
            progress(done)
        if held is None or not rows:
            raise LocAtError("no training image has a labelled pixel; check the annotations' folder")
        return Memory(held.features[:rows], held.labels[:rows])

    def clear(self) -> None:
        """Remove the parts."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _path(self, span: tuple[int, int, int]) -> Path:
        return self._folder / f"epoch-{span[0]:03d}-batch-{span[1]:06d}.safetensors"

    def _read(self, span: tuple[int, int, int]) -> Memory | None:
        path = self._path(span)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == self._key:
                    return Memory(file.get_tensor("features"), file.get_tensor("labels"))
            _log.warning("%s is of another configuration; it is made anew", path)
        except SafetensorError as error:
            _log.warning("%s cannot be read (%s); it is made anew", path, " ".join(str(error).split()))
        return None

    def _make(
        self, span: tuple[int, int, int], remember: Remember, done: int, progress: Callable[[int], None]
    ) -> Memory:
        found = []
        for number, (place, images, masks) in enumerate(self._batches(span), start=1):
            found.append(remember(images, masks, place))
            progress(done + number)
        part = Memory(torch.cat([each.features for each in found]), torch.cat([each.labels for each in found]))
        tensors = {"features": part.features.contiguous(), "labels": part.labels.contiguous()}
        atomic_write(self._path(span), lambda path: save_file(tensors, path, metadata={"key": self._key}))
        return part

    def _batches(self, span: tuple[int, int, int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """A number of its own, images and masks of each batch of a part."""
        epoch, first, last = span
        self._loader.set_epoch(epoch, skip_batches=first)
        for place, (images, masks) in zip(range(first, last), self._loader, strict=False):
            yield epoch * len(self._loader) + place, images, masks


def memory_rows(config: HummingbirdConfig, num_images: int, num_patches: int) -> tuple[int | None, int]:
    """(patches that each image gives in each pass, None for all; the most rows that the memory can have).

    Args:
        config: ``memory_size`` and ``augmentation_epochs`` count.
        num_images: in the training split.
        num_patches: of one image.

    Raises:
        LocAtError: ``memory_size`` gives no patch to an image.
    """
    passes = num_images * config.augmentation_epochs
    if config.memory_size is None or config.memory_size >= passes * num_patches:
        return None, passes * num_patches
    share = config.memory_size // passes
    if not share:
        raise LocAtError(
            f"memory_size is {config.memory_size}, less than a patch for each of {num_images} training images in "
            f"{config.augmentation_epochs} epochs; it must be {passes} or more, or null for all patches"
        )
    return share, passes * share


def check_memory(config: HummingbirdConfig, rows: int, num_images: int, width: int, num_classes: int) -> None:
    """Refuse a memory that would take more than ``max_memory_gib``, before anything is computed.

    Args:
        config: the bound, and the backend: faiss keeps the features a second time.
        rows: of the memory.
        num_images: of the training split.
        width: of a feature.
        num_classes: of the labels.

    Raises:
        LocAtError: it is larger; says which memory_size fits.
    """
    row_bytes = 4 * (width * (2 if config.backend == "faiss" else 1) + num_classes)
    bound = config.max_memory_gib * 2**30
    if rows * row_bytes <= bound:
        return
    passes = num_images * config.augmentation_epochs
    fits = int(bound // row_bytes) // passes * passes
    smaller = f"set memory_size to {fits} or less (it samples patches), or raise" if fits else "raise"
    raise LocAtError(
        f"max_memory_gib is {config.max_memory_gib:g}, and the memory of {rows:,} patches, {width} + {num_classes} "
        f"numbers each, takes {rows * row_bytes / 2**30:.3g} GiB with {config.backend}; {smaller} max_memory_gib"
    )
