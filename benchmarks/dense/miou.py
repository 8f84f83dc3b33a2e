"""Counting pixels for mIoU: the package, torchmetrics as it is, numpy, and a loop over classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from benchmarks.dense.cases import MiouCase
from benchmarks.dense.outcome import Outcome, Progress
from locatvit.errors import LocAtError
from locatvit.evaluation.metrics import SegmentationMetrics

OURS = "locatvit"
IGNORE = 255
_TOLERANCE = 1e-6


class Counter(Protocol):
    """What sees one image after the other and then tells the mIoU."""

    def update(self, predicted: Tensor, truth: Tensor) -> None: ...

    def miou(self) -> float: ...


class Ours:
    """``SegmentationMetrics``."""

    def __init__(self, num_classes: int, boundary_share: float | None = None) -> None:
        names = [str(label) for label in range(num_classes)]
        self.metrics = SegmentationMetrics(names, IGNORE, boundary_share=boundary_share)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        self.metrics.update(predicted, truth)

    def miou(self) -> float:
        return self.metrics.compute()[0]["miou"]


class Torchmetrics:
    """``MulticlassJaccardIndex`` as its documentation shows it."""

    def __init__(self, num_classes: int) -> None:
        self.metric = MulticlassJaccardIndex(num_classes, ignore_index=IGNORE)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        self.metric.update(predicted, truth)

    def miou(self) -> float:
        return float(self.metric.compute())


@dataclass
class Numpy:
    """The confusion matrix by ``numpy.bincount``, as most evaluation scripts have it."""

    num_classes: int
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        labels, guesses = truth.numpy(), predicted.numpy()
        kept = labels != IGNORE
        pairs = self.num_classes * labels[kept] + guesses[kept]
        self.counts += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.counts.shape)

    def miou(self) -> float:
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - np.diag(self.counts)
        return float((np.diag(self.counts)[union > 0] / union[union > 0]).mean())


@dataclass
class ByClass:
    """Intersection and union of each class by comparing whole masks."""

    num_classes: int
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(2, self.num_classes, dtype=torch.long)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        kept = truth != IGNORE
        for label in range(self.num_classes):
            guessed, true = (predicted == label) & kept, truth == label
            self.counts[0, label] += (guessed & true).sum()
            self.counts[1, label] += (guessed | true).sum()

    def miou(self) -> float:
        intersection, union = self.counts[:, self.counts[1] > 0].double()
        return float((intersection / union).mean())


CONTENDERS: dict[str, Callable[[int], Counter]] = {
    OURS: Ours,
    "locatvit, boundary IoU too": lambda num_classes: Ours(num_classes, 0.02),
    "torchmetrics": Torchmetrics,
    "numpy bincount": Numpy,
    "a loop over classes": ByClass,
}
DETERMINISTIC = "torchmetrics, deterministic"


def images(case: MiouCase) -> list[tuple[Tensor, Tensor]]:
    """Predicted and true masks of large regions with ragged edges: some right, some wrong, some ignored."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(case.num_distinct):
        coarse = torch.randint(case.num_classes, (1, 1, 9, 12), generator=generator).float()
        truth = F.interpolate(coarse, size=case.image_size, mode="nearest")[0, 0].long()
        moved = truth.roll((5, -7), dims=(0, 1))
        wrong = torch.randint(case.num_classes, case.image_size, generator=generator)
        predicted = torch.where(torch.rand(case.image_size, generator=generator) < 0.02, wrong, moved)
        truth = torch.where(torch.rand(case.image_size, generator=generator) < 0.05, IGNORE, truth)
        found.append((predicted, truth))
    return found


def verify(case: MiouCase, shown: list[tuple[Tensor, Tensor]]) -> None:
    """All contenders have one mIoU.

    Raises:
        LocAtError: one is off.
    """
    expected = _by_sets(case, shown)
    for name, make in CONTENDERS.items():
        counter = make(case.num_classes)
        for pair in shown:
            counter.update(*pair)
        if not abs(counter.miou() - expected) <= _TOLERANCE:
            raise LocAtError(
                f"{case.name}, {name}: the mIoU is {counter.miou()}, and counted in another way {expected}; no time is "
                "reported over a wrong result: run the tests of the metrics first"
            )


def _by_sets(case: MiouCase, shown: list[tuple[Tensor, Tensor]]) -> float:
    """The mIoU by sets of pixels, with Python's numbers."""
    predicted, truth = (np.concatenate([pair[side].flatten().numpy() for pair in shown]) for side in (0, 1))
    predicted, truth = predicted[truth != IGNORE], truth[truth != IGNORE]
    scores = []
    for label in range(case.num_classes):
        mine, theirs = np.flatnonzero(predicted == label), np.flatnonzero(truth == label)
        both = np.intersect1d(mine, theirs, assume_unique=True).size
        if mine.size + theirs.size:
            scores.append(both / (mine.size + theirs.size - both))
    return sum(scores) / len(scores)


def measure(case: MiouCase, seconds: float, progress: Progress) -> list[Outcome]:
    """Times of each contender, image by image by turns; one that has used up ``seconds`` sees no more images."""
    shown = images(case)
    progress(f"{case.name}: checking")
    verify(case, shown)
    counters = {name: make(case.num_classes) for name, make in CONTENDERS.items()}
    taken: dict[str, list[float]] = {name: [] for name in counters}
    spent = dict.fromkeys(counters, 0.0)
    for number in range(case.num_images):
        for name, counter in counters.items():
            if spent[name] > seconds:
                continue
            start = time.perf_counter()
            counter.update(*shown[number % len(shown)])
            taken[name].append(time.perf_counter() - start)
            spent[name] += taken[name][-1]
        if number % 20 == 0:
            progress(f"{case.name}: image {number + 1} of {case.num_images}")
    outcomes = [Outcome(case, name, tuple(values), 1, case.num_images) for name, values in taken.items()]
    return [*outcomes, Outcome(case, DETERMINISTIC, (), 1, case.num_images, why_not=_why_not_deterministic(case))]


def _why_not_deterministic(case: MiouCase) -> str:
    height, width = case.image_size
    gibibytes = 8 * height * width * case.num_classes**2 / 2**30
    return f"compares every pixel with every cell: {gibibytes:,.1f} GiB"
