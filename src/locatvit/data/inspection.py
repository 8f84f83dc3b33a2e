"""What is in a split of images with masks: sizes, channel statistics, shares of the classes, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from locatvit.data.decoding import UnreadableImage
from locatvit.data.spec import ImageDataset
from locatvit.errors import LocAtError

_CHUNK = 64
"""Images that are read ahead of the sums, at most."""
_LEVELS = np.arange(256, dtype=np.int64)


@dataclass(frozen=True)
class Inspection:
    """The statistics of a split, over the images that could be read.

    Attributes:
        num_images: of the split.
        num_read: of them looked at and in order.
        unreadable: a line for each image or mask that cannot be decoded.
        faulty: a line for each pair that breaks a rule: labels that are no classes, sizes that differ.
        sizes: (height, width) in pixels to the number of images of that size, the most frequent first.
        mean: per channel, of images in [0, 1].
        std: per channel, over all pixels, likewise.
        class_pixels: pixels of each class.
        class_images: images in which each class shows.
        ignored_pixels: pixels without a class.
    """

    num_images: int
    num_read: int
    unreadable: tuple[str, ...]
    faulty: tuple[str, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    class_pixels: tuple[int, ...]
    class_images: tuple[int, ...]
    ignored_pixels: int

    @property
    def num_pixels(self) -> int:
        """All pixels of the masks."""
        return sum(self.class_pixels) + self.ignored_pixels

    @property
    def class_shares(self) -> tuple[float, ...]:
        """The share of each class among all pixels, ignored ones included."""
        return tuple(pixels / max(1, self.num_pixels) for pixels in self.class_pixels)

    @property
    def ignored_share(self) -> float:
        """The share of pixels without a class among all."""
        return self.ignored_pixels / max(1, self.num_pixels)

    def quantile_size(self, quantile: float) -> tuple[int, int] | None:
        """(height, width), each on its own, that this share of the images does not exceed; None without images."""
        if not self.sizes:
            return None
        counts = [count for _, count in self.sizes]
        sides = np.repeat(np.array([size for size, _ in self.sizes]), counts, axis=0)
        height, width = np.quantile(sides, quantile, axis=0, method="lower").tolist()
        return height, width


@dataclass(frozen=True)
class _Measured:
    """One pair: its size, a histogram of 256 a channel, and pixels by mask value."""

    size: tuple[int, int]
    levels: Int64[np.ndarray, "3 256"]
    labels: Int64[np.ndarray, 256]


def spread(count: int, most: int | None) -> list[int]:
    """``most`` of ``count`` indices, evenly spread, the first and the last among them; all where None or fewer."""
    if most is None or most >= count:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist() if most > 1 else [0][:most]


def inspect_split(
    dataset: ImageDataset,
    indices: Sequence[int],
    *,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Read images and masks and sum up what is in them.

    Args:
        dataset: a split of a segmentation set, without a transform.
        indices: which images.
        num_workers: threads that read; 0 reads in this one. The outcome is the same.
        on_progress: called with images done and images to do.
    """
    unreadable, faulty, sizes = [], [], Counter[tuple[int, int]]()
    levels, labels, images = np.zeros((3, 256), np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    for done, found in enumerate(_measure_all(dataset, indices, num_workers), start=1):
        if isinstance(found, UnreadableImage):
            unreadable.append(str(found))
        elif isinstance(found, LocAtError):
            faulty.append(str(found))
        else:
            sizes[found.size] += 1
            levels += found.levels
            labels += found.labels
            images += found.labels > 0
        on_progress(done, len(indices))
    mean, std = _channel_statistics(levels)
    ignored, classes = dataset.spec.ignore_index, dataset.spec.num_classes
    return Inspection(
        num_images=len(dataset),
        num_read=sum(sizes.values()),
        unreadable=tuple(unreadable),
        faulty=tuple(faulty),
        sizes=tuple(sizes.most_common()),
        mean=mean,
        std=std,
        class_pixels=tuple(labels[:classes].tolist()),
        class_images=tuple(images[:classes].tolist()),
        ignored_pixels=0 if ignored is None else int(labels[ignored]),
    )


def _measure_all(dataset: ImageDataset, indices: Sequence[int], num_workers: int) -> Iterator[_Measured | LocAtError]:
    def measure(index: int) -> _Measured | LocAtError:
        try:
            return _measure(*dataset[index])
        except LocAtError as error:
            return error

    if num_workers == 0:
        yield from map(measure, indices)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(indices), _CHUNK):
            yield from pool.map(measure, indices[start : start + _CHUNK])


def _measure(image: Any, mask: Any) -> _Measured:
    levels = np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
    labels = np.bincount(mask.numpy().ravel(), minlength=256).astype(np.int64)
    return _Measured((image.height, image.width), levels, labels)


def _channel_statistics(
    levels: Int64[np.ndarray, "3 256"],
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Mean and standard deviation of each channel, exact up to the last division; None without pixels."""
    pixels = levels.sum(axis=1)
    if not pixels.all():
        return None, None
    mean = (levels @ _LEVELS) / pixels
    variance = (levels @ _LEVELS**2) / pixels - mean**2
    means, stds = (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 0)) / 255).tolist()
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
