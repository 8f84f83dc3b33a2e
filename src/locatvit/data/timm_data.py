"""What ``timm.data.create_dataset`` reads by prefix.

Hugging Face (hfds/), WebDataset (wds/), torchvision (torch/) and TFDS (tfds/).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from locatvit.data.images import UnreadableImage, read_image
from locatvit.data.loader import Loader, collate, kept_random_state, plain_errors, seed_generators
from locatvit.data.spec import DataSpec, Split
from locatvit.errors import LocAtError

_NEEDS = {
    "hfds": ("datasets", "pip install datasets"),
    "wds": ("webdataset", "pip install webdataset"),
    "tfds": ("tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
}
_SPLIT_NAMES: dict[Split, str] = {"train": "train", "val": "validation"}


def open_timm(
    name: str,
    split: Split,
    root: Path | None,
    transform: Callable[..., Any] | None = None,
    *,
    split_name: str | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> TimmDataset | TimmStream:
    """Open a data set by its timm name.

    Args:
        name: prefix and name, e.g. ``hfds/cifar100``, ``torch/cifar10``, ``wds/imagenet``.
        split: ``"train"`` or ``"val"``.
        root: folder or cache of the data, as timm wants it for this prefix.
        transform: PIL image to anything.
        split_name: the split's name in the data, by default ``train`` or ``validation``; a range of shards
            for wds.
        num_classes: where the data does not name its classes, as in wds.
        options: for ``timm.data.create_dataset``, e.g. ``download=True``, ``input_key="img"``,
            ``target_key="fine_label"``.

    Raises:
        LocAtError: a library is missing, timm cannot open the data, or the number of classes is not known.
    """
    _check_library(name)
    arguments = {
        "root": None if root is None else str(root),
        "split": split_name or _SPLIT_NAMES[split],
        **options,
    }
    try:
        data = create_dataset(name, is_training=split == "train", **arguments)
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocAtError(
            f"timm cannot open {name!r} with split {arguments['split']!r} and root {arguments['root']!r}: "
            f"{reason}. Check name, root and split_name, or pass download=True"
        ) from error
    spec = DataSpec(name, "classification", _class_names(data, name, num_classes))
    return (
        TimmStream(data, spec, transform) if isinstance(data, IterableDataset) else TimmDataset(data, spec, transform)
    )


def _check_library(name: str) -> None:
    prefix = name.partition("/")[0]
    module, remedy = _NEEDS.get(prefix, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        raise LocAtError(f"data set {name!r} needs the library {module}, which is not installed: {remedy}")


def _class_names(data: Any, name: str, num_classes: int | None) -> tuple[str, ...]:
    """The names in the data, else numbers."""
    source = getattr(data, "reader", data)
    numbers: dict[str, int] = getattr(source, "class_to_idx", None) or {}
    names = tuple(map(str, sorted(numbers, key=numbers.__getitem__)))
    if num_classes is None and not names:
        raise LocAtError(f"data set {name!r} does not name its classes; pass num_classes")
    if num_classes is None or num_classes == len(names):
        return names
    if names:
        raise LocAtError(f"num_classes is {num_classes}, but data set {name!r} has {len(names)} classes; leave it out")
    return tuple(str(number) for number in range(num_classes))


class TimmDataset(Dataset[tuple[Any, int]]):
    """A data set of timm's with random access: hfds/ and torch/.

    timm itself puts another image in the place of an unreadable one. Here it is read past that, so that
    ``TolerantDataset`` can count it.
    """

    def __init__(self, data: Any, spec: DataSpec, transform: Callable[..., Any] | None = None) -> None:
        self.data, self.spec, self.transform = data, spec, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._read(index)
        if not 0 <= label < self.spec.num_classes:
            raise LocAtError(
                f"{self.describe(index)} has the label {label}; classes are 0 to "
                f"{self.spec.num_classes - 1}. Check target_key and num_classes"
            )
        return (self.transform(image) if self.transform else image), label

    def _read(self, index: int) -> tuple[Any, int]:
        if hasattr(self.data, "reader"):
            stream, label, *_ = self.data.reader[index]
            with stream:
                return read_image(stream, self.describe(index)), int(label)
        try:
            image, label = self.data[index]
            return image.convert("RGB"), int(label)
        except (OSError, SyntaxError) as error:
            raise UnreadableImage(f"image {self.describe(index)} cannot be read: {error}") from error

    def describe(self, index: int) -> str:
        """The file's name where there is one, else name and index."""
        samples = getattr(self.data, "samples", None)
        return str(samples[index][0]) if samples else f"{self.spec.name}, image {index}"


class TimmStream(IterableDataset[tuple[Any, int]]):
    """A data set of timm's that can only be read from front to back: wds/ and tfds/."""

    def __init__(self, data: Any, spec: DataSpec, transform: Callable[..., Any] | None = None) -> None:
        self.data, self.spec, self.transform = data, spec, transform

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.data:
            if not 0 <= label < self.spec.num_classes:
                raise LocAtError(
                    f"{self.spec.name} has the label {label}; classes are 0 to {self.spec.num_classes - 1}"
                )
            yield (self.transform(image) if self.transform else image), int(label)


class _SeededStream(IterableDataset[tuple[Any, int]]):
    """Reads a stream with random generators seeded by (seed, epoch, worker and place)."""

    def __init__(self, dataset: TimmStream, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    @property
    def spec(self) -> DataSpec:
        return self.dataset.spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        worker = get_worker_info()
        place, step = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = iter(self.dataset)
        while True:
            with kept_random_state(), plain_errors():
                seed_generators(self.seed, self.epoch, place)
                sample = next(samples, None)
            if sample is None:
                return
            yield sample
            place += step


class StreamLoader(Loader):
    """A loader of a stream. The order is timm's, a function of seed, epoch and number of workers."""

    dataset: _SeededStream  # type: ignore[assignment]  # it has spec and len, and is never indexed

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Settle the epoch.

        Raises:
            LocAtError: batches to skip: a stream has no middle to start at.
        """
        if skip_batches:
            raise LocAtError(
                f"{self.dataset.spec.name} is read as a stream, so an epoch cannot be resumed after "
                f"{skip_batches} batches; resume from a checkpoint at the end of an epoch"
            )
        self.dataset.epoch = epoch
        self.dataset.dataset.data.set_epoch(epoch)
        self.generator.manual_seed(self.dataset.seed + epoch)


def make_stream_loader(
    dataset: IterableDataset[Any], *, batch_size: int, training: bool, num_workers: int, seed: int
) -> StreamLoader:
    """``make_loader`` for streams.

    Training reads in one worker at least, because a new one starts every epoch afresh; evaluation in one at
    most, because several would each end with an incomplete batch. Unreadable images are timm's matter: it
    logs and omits them.
    """
    if not isinstance(dataset, TimmStream):
        raise LocAtError(f"{type(dataset).__name__} has no random access; make_loader takes such only from timm")
    num_workers = max(num_workers, 1) if training else min(num_workers, 1)
    reader = dataset.data.reader
    reader.is_training, reader.batch_size, reader.common_seed = training, batch_size, seed
    dataset.data.set_loader_cfg(num_workers=num_workers)
    loader = StreamLoader(
        _SeededStream(dataset, seed),
        batch_size=batch_size,
        drop_last=training,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    loader.set_epoch(0)
    return loader
