"""The batches of a loader as one stream of updates that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import send_to_device

from locatvit.errors import LocAtError
from locatvit.training.runtime import preserved_rng


class EpochLoader(Protocol):
    """A torch ``DataLoader`` whose order and augmentation follow from seed, epoch and sample index alone."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""

    def __iter__(self) -> Iterator[Any]:
        """The batches of the epoch set, without those to skip."""

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Choose the epoch, counted from 0, and leave out its first batches without loading them."""


class EpochBatches:
    """A loader's batches, each process its share, on the device.

    Args:
        loader: one process's view of the whole data; it is shared out here.
        accelerator: knows device and processes.
        check_batch: called with each batch while it is still in the host's memory, where looking at values
            costs no waiting for the device; it raises ``LocAtError`` for a batch that cannot be trained on.

    Raises:
        LocAtError: the loader has no batches.
    """

    def __init__(
        self, loader: EpochLoader, accelerator: Accelerator, check_batch: Callable[[Any], None] | None = None
    ) -> None:
        self._loader = loader
        self._shared: Any = loader
        self._accelerator = accelerator
        self._check_batch = check_batch
        if accelerator.num_processes > 1:
            self._shared = accelerator.prepare_data_loader(loader, device_placement=False)
        if len(self) == 0:
            raise LocAtError(
                "the training loader has no batches: the data set is empty or smaller than one batch; check "
                "the data's folder and split, or lower batch_size"
            )

    def __len__(self) -> int:
        """Updates of an epoch."""
        return len(self._shared)

    def stream(self, done: int, num_updates: int) -> Iterator[tuple[int, Any]]:
        """The number of each update, counted from 1, and its batch, from ``done + 1`` to ``num_updates``.

        Raises:
            LocAtError: the loader gives another number of batches than it announces.
        """
        update = done
        while update < num_updates:
            epoch, skip = divmod(update, len(self))
            last = (epoch + 1) * len(self)
            for batch in self._open(epoch, skip):
                update += 1
                if update <= last:
                    if self._check_batch is not None:
                        self._check_batch(batch)
                    yield update, send_to_device(batch, self._accelerator.device, non_blocking=True)
                if update == num_updates:
                    return
            if update != last:
                raise LocAtError(
                    f"the training loader gave {update - last + len(self)} batches in epoch {epoch + 1} but "
                    f"has len {len(self)}; its len must be the batches of an epoch, whatever set_epoch skips"
                )

    def _open(self, epoch: int, skip: int) -> Iterator[Any]:
        shared = self._shared
        if shared is self._loader:
            self._loader.set_epoch(epoch, skip_batches=skip)
        else:
            self._loader.set_epoch(epoch)
            # Accelerate's loader sets the epoch once more, from its own counter, and would forget the skip
            shared = self._accelerator.skip_first_batches(shared, skip) if skip else shared
            shared.iteration = epoch
        # torch's iterator draws a seed for its workers; a resumed run opens more of them than an unbroken one
        with preserved_rng(self._accelerator.device):
            batches = iter(shared)
            first = list(islice(batches, 1))
        return chain(first, batches)
