"""The test of a segmentation head: its images, its scores, and sheets of the worst and best."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from locatvit.data import Split, open_dataset
from locatvit.data.loader import Loader
from locatvit.data.transforms import segmentation_transform
from locatvit.evaluation.extract import FeaturesFn
from locatvit.evaluation.feature_cache import FeatureCache
from locatvit.evaluation.segmentation import evaluate_segmentation
from locatvit.recipes.config import SegmentRun
from locatvit.recipes.run import build_loader
from locatvit.recipes.segmentation_features import (
    CachedImages,
    FeatureSource,
    SeenBatches,
    collate_samples,
    make_cache,
)
from locatvit.recipes.segmentation_sheets import SheetCollector


def split_loader(run: SegmentRun, split: Split, batch_size: int, cache: FeatureCache | None = None) -> Loader:
    """The images and masks of one split, transformed for the protocol; with a cache, batches of ``CachedImages``."""
    return build_loader(
        run.data,
        "segmentation",
        split,
        segmentation_transform(run.augment, training=split == "train"),
        batch_size=batch_size,
        num_workers=run.protocol.num_workers,
        seed=run.protocol.seed,
        wrap=None if cache is None else partial(CachedImages, cache=cache),
        collate_fn=None if cache is None else collate_samples,
    )


class Measure:
    """Measures the head on the validation images, and keeps the last measure's figures by class and its sheets."""

    def __init__(self, run: SegmentRun, features_fn: FeaturesFn, model: dict[str, Any], device: torch.device) -> None:
        self._run, self._features_fn, self._device = run, features_fn, device
        self.head: nn.Module | None = None
        self._per_class: dict[str, float | None] | None = None
        self._sheets: SheetCollector | None = None
        protocol = run.protocol
        assert protocol.num_updates is not None, "resolved"
        assert protocol.evaluate_every is not None, "resolved"
        is_worth = run.cache.max_gib and (run.cache.dir is not None or protocol.evaluate_every < protocol.num_updates)
        cache = make_cache(run, "val", model, device) if is_worth else None
        # images are measured in their own aspect, so no two of them make a batch
        self.loader = split_loader(run, "val", 1, cache)
        self._batches: Any = self.loader
        if cache is not None:
            self._batches = SeenBatches(self.loader, FeatureSource(cache, features_fn, device, protocol))

    def __call__(self) -> dict[str, float]:
        spec, count = self.loader.spec, self._run.sheets
        assert self.head is not None, "built from the training images"
        self._sheets = SheetCollector(spec.num_classes, spec.ignore_index, count) if count else None
        metrics, self._per_class = evaluate_segmentation(
            self._features_fn, self.head, self._batches, spec.classes, spec.ignore_index, self._device,
            config=self._run.protocol, on_image=self._sheets.update if self._sheets else None,
        )  # fmt: skip
        return metrics

    def per_class(self) -> dict[str, float | None]:
        """Of the last measure; measures where none was taken, as for a run that had ended before."""
        if self._per_class is None:
            self()
        assert self._per_class is not None
        return self._per_class

    def write_sheets(self, folder: Path, title: str) -> None:
        """Draw the best and worst images of the last measure."""
        if self._sheets is not None:
            data = self._run.data
            pictures = open_dataset(data.name, task="segmentation", split="val", root=data.root, **data.val_options)
            self._sheets.write(folder, pictures, title)
