"""Batches that depend on seed, epoch and data alone, not on workers nor on where a run was resumed."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from locatvit.data.spec import DataSpec, ImageDataset
from locatvit.data.tolerant import TolerantDataset
from locatvit.errors import LocAtError

Key = tuple[int, int]
"""``(epoch, index)``: what the sampler hands to the workers."""


class LoaderError(LocAtError):
    """A ``LocAtError`` on its way out of a DataLoader worker.

    torch raises an error of a worker again as ``type(error)(text)``, with the whole traceback as text. The
    last line of it is the message, and this class takes only that.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().rpartition(f"{type(self).__name__}: ")[2])


class EpochSampler(Sampler[Key]):
    """Yields ``(epoch, index)``. The order of an epoch is a function of seed and epoch.

    Args:
        length: number of samples in the data set.
        seed: the run's.
        shuffle: False for ascending order in every epoch.
    """

    def __init__(self, length: int, seed: int, shuffle: bool) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self._epoch = 0
        self._appointed: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Accelerate's loader calls this before it iterates, with a counter of its own."""
        self._epoch = epoch

    def appoint(self, epoch: int, skip_samples: int) -> None:
        """Settle epoch and start of the next iteration, whatever ``set_epoch`` says until then."""
        self._appointed = (epoch, skip_samples)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        epoch, skip = self._appointed or (self._epoch, 0)
        self._appointed, self._epoch = None, epoch
        order = list(range(self.length))
        if self.shuffle:
            generator = torch.Generator().manual_seed(_seeds(self.seed, epoch, -1)[0])
            order = torch.randperm(self.length, generator=generator).tolist()
        return iter([(epoch, index) for index in order[skip:]])


class SeededDataset(Dataset[tuple[Any, Any]]):
    """Reads samples by ``(epoch, index)``, each with random generators seeded by (seed, epoch, index).

    The generators of the calling process are as before afterwards, so that a training without workers draws
    the same dropout as one with them.
    """

    def __init__(self, dataset: TolerantDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    @property
    def spec(self) -> DataSpec:
        """The spec of the wrapped data set."""
        return self.dataset.spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Any, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Any, Any]]:
        with kept_random_state(), plain_errors():
            return [self._read(epoch, index) for epoch, index in keys]

    def _read(self, epoch: int, index: int) -> tuple[Any, Any]:
        seed_generators(self.seed, epoch, index)
        return self.dataset[index]


class Loader(DataLoader[Any]):
    """A DataLoader whose epoch and start can be set. Made by ``make_loader``."""

    sampler: EpochSampler
    dataset: SeededDataset

    @property
    def spec(self) -> DataSpec:
        """The spec of its data set."""
        return self.dataset.spec

    @property
    def num_images(self) -> int:
        """Images of the whole data set, those of an incomplete last batch included."""
        return len(self.dataset)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Settle the next iteration, also one over the loader that ``Accelerator.prepare`` makes of this one.

        Args:
            epoch: decides order and augmentation.
            skip_batches: batches to leave out at the start, without reading them. They are counted before
                Accelerate shares batches out: on n processes, n times the batches that each has done. All of
                them leaves an iteration without batches.

        Raises:
            LocAtError: more batches than an epoch has, or a negative number.
        """
        if not 0 <= skip_batches <= len(self):
            raise LocAtError(
                f"skip_batches is {skip_batches}; the epoch has {len(self)} batches, so it must be 0 to "
                f"{len(self)}. Has the data or the batch size changed since the checkpoint?"
            )
        assert self.batch_size is not None
        self.sampler.appoint(epoch, skip_batches * self.batch_size)


def make_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    training: bool,
    num_workers: int = 0,
    seed: int = 0,
    max_bad_images: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Loader:
    """Make batches of a data set.

    The same arguments give the same batches, bit for bit, whatever ``num_workers``; the global random
    generators are left as they are. ``len(loader)`` is the number of batches in a whole epoch, also where
    some are skipped.

    Args:
        dataset: from ``open_dataset``, its transform set.
        batch_size: images a batch.
        training: shuffle, and leave out the incomplete batch at the end (with fewer images than
            ``batch_size``, one batch holds them all). Else: in order, all.
        num_workers: processes that read; 0 reads in this one.
        seed: decides order and augmentation, together with the epoch (``Loader.set_epoch``).
        max_bad_images: unreadable images to bear, see ``TolerantDataset``.
        collate_fn: makes a batch of samples; None for ``collate``. A stream of ``timm/...`` always takes that.

    Raises:
        LocAtError: an argument out of range, or an empty data set. Iterating raises it for bad images and
            masks.
    """
    _check("batch_size", batch_size, 1)
    _check("num_workers", num_workers, 0)
    _check("seed", seed, 0)
    if isinstance(dataset, IterableDataset):
        from locatvit.data.timm_data import make_stream_loader

        return make_stream_loader(dataset, batch_size=batch_size, training=training, num_workers=num_workers, seed=seed)
    if len(dataset) == 0:
        raise LocAtError("the data set is empty; it needs one image at least")
    return Loader(
        SeededDataset(TolerantDataset(dataset, max_bad_images), seed),
        batch_size=min(batch_size, len(dataset)) if training else batch_size,
        sampler=EpochSampler(len(dataset), seed, shuffle=training),
        drop_last=training,
        num_workers=num_workers,
        collate_fn=collate if collate_fn is None else collate_fn,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every iteration would draw from the global one
    )


def collate(samples: list[tuple[Any, Any]]) -> Any:
    """Stack samples to a batch.

    Raises:
        LocAtError: images or masks of different sizes.
    """
    for place, kind in enumerate(("images", "masks")):
        shapes = {tuple(sample[place].shape) for sample in samples if isinstance(sample[place], Tensor)}
        if len(shapes) > 1:
            sizes = ", ".join("x".join(map(str, shape[-2:])) for shape in sorted(shapes)[:3])
            raise LoaderError(f"{kind} of sizes {sizes} in one batch; use batch_size 1, or a transform that crops")
    return default_collate(samples)


def seed_generators(seed: int, epoch: int, index: int) -> None:
    """Seed the generators of python, numpy and torch (CPU) as a function of the three numbers."""
    for_python, for_numpy, for_torch = _seeds(seed, epoch, index)
    random.seed(for_python)
    np.random.seed(for_numpy % 2**32)
    # torch.manual_seed would seed the GPU's generator too, which is the training's
    torch.default_generator.manual_seed(for_torch)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the generators of python, numpy and torch (CPU) at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let a ``LocAtError`` leave a DataLoader worker as one plain line."""
    try:
        yield
    except LocAtError as error:
        raise LoaderError(str(error)) from error


def _seeds(seed: int, epoch: int, index: int) -> tuple[int, int, int]:
    """Three independent numbers below 2**63."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=24).digest()
    first, second, third = struct.unpack("<3Q", digest)
    return first >> 1, second >> 1, third >> 1


def _check(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or not least <= value < 2**63:
        raise LocAtError(f"{name} is {value}; it must be a whole number, {least} or more")
