"""Where a segmentation run has its features from: the backbone, or the cache where an image's are always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from locatvit.data import ImageDataset, Split
from locatvit.data.loader import Loader
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn
from locatvit.evaluation.feature_cache import GIB, FeatureCache, from_entry, to_entry
from locatvit.evaluation.sliding import Seen, see
from locatvit.features import Features
from locatvit.recipes.config import SegmentRun
from locatvit.recipes.folder import plain_data

CACHE_FOLDER = "features"
"""Where a run without ``cache.dir`` keeps them, until it has ended."""

_WHOLE = SegmentationConfig("locat", window_size=0)

Sample = tuple[str, dict[str, Tensor]]
Batch = dict[str, Any]


def make_cache(run: SegmentRun, split: Split, model: dict[str, Any], device: torch.device) -> FeatureCache:
    """The cache of one split: its key holds all that features of an image depend on.

    Args:
        run: resolved.
        split: which images; training ones are cropped.
        model: a result's ``model``, with the digest of the weights.
        device: kinds of devices round differently.
    """
    augment = plain_data(asdict(run.augment))
    shown = ["short_side", "long_side_max", "antialias", "mean", "std"] + ["crop_size"] * (split == "train")
    values = run.protocol.values()
    window = ["window_size", "window_stride"] if split == "val" else []
    context = {
        "layout": 1,
        "versions": {name: metadata.version(name) for name in ("locatvit", "torch", "timm")},
        "device": device.type,
        "dtype": "float32",
        "model": {name: model.get(name) for name in ("name", "kwargs", "locat", "weights")},
        "read": {name: values[name] for name in ("layer", "norm", *window)},
        "augment": {name: augment[name] for name in shown},
        "data": [run.data.name, split, plain_data(getattr(run.data, f"{split}_options"))],
    }
    folder = run.run_dir / CACHE_FOLDER if run.cache.dir is None else run.cache.dir
    return FeatureCache(folder, run.cache.max_gib * GIB, context)


class CachedImages(Dataset[Sample]):
    """A data set whose items are the key of an image, and what is known of it: its entry, else image and mask.

    Args:
        dataset: with its transform, which must give the same for an image every time.
        cache: see ``make_cache``.
    """

    def __init__(self, dataset: ImageDataset, cache: FeatureCache) -> None:
        self._dataset, self._cache = dataset, cache
        self.spec, self.transform = dataset.spec, dataset.transform

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        # taken before the image is read: if that changes meanwhile, this names the one that is gone
        key = self._cache.key(self._identity(index))
        entry = self._cache.read(key)
        if entry is None:
            image, mask = self._dataset[index]
            entry = {"image": image, "mask": mask}
        return key, entry

    def describe(self, index: int) -> str:
        """As the wrapped data set."""
        return self._dataset.describe(index)

    def _identity(self, index: int) -> str:
        """Which image: its files with size and time of change; of data without files what ``describe`` says."""
        files = getattr(self._dataset, "pairs", None)
        paths = [Path(path) for path in files[index]] if files is not None else []
        stats = [path.stat() for path in paths]
        return repr([self.describe(index), index] + [(stat.st_size, stat.st_mtime_ns) for stat in stats])


def collate_samples(samples: list[Sample]) -> Batch:
    """A batch whose samples stay apart: some may be known and others not. ``place`` shows how many there are."""
    return {"place": torch.arange(len(samples)), "samples": samples}


@dataclass(frozen=True)
class FeatureSource:
    """Features and masks of batches of ``CachedImages``; what was not known is computed and kept.

    Every image is shown to the backbone alone and in float32, so that its features do not depend on the batch that it
    comes in, nor on what the cache holds.

    Attributes:
        cache: that of the images.
        features_fn: the backbone's.
        device: the backbone's.
        config: how a test image is shown; whole by default.
    """

    cache: FeatureCache
    features_fn: FeaturesFn
    device: torch.device
    config: SegmentationConfig = _WHOLE

    def __call__(self, batch: Batch) -> tuple[Seen, Tensor]:
        """What the backbone sees of a batch, and the masks ``[B, H, W]``, both on the device."""
        found = [self._kept(key, content) for key, content in batch["samples"]]
        return _together([seen for seen, _ in found]), torch.stack([mask for _, mask in found])

    def _kept(self, key: str, content: dict[str, Tensor]) -> tuple[Seen, Tensor]:
        seen, mask = self.look(content)
        if "image" in content:
            self.cache.write(key, to_entry(seen, content["mask"]))
        return seen, mask

    def look(self, content: dict[str, Tensor]) -> tuple[Seen, Tensor]:
        """What the backbone sees of one image, and its mask, both on the device; nothing is kept."""
        if "image" not in content:
            return from_entry({name: value.to(self.device) for name, value in content.items()})
        with torch.autocast(self.device.type, enabled=False):
            seen = see(self.features_fn, content["image"][None].to(self.device), self.config)
        return seen, content["mask"].to(self.device)


def _together(seen: list[Seen]) -> Seen:
    """Several images of one size, each seen whole, as one batch; one image however it was seen."""
    if len(seen) == 1:
        return seen[0]
    features = [one.features for one in seen]
    cls = None if features[0].cls is None else torch.cat([each.cls for each in features if each.cls is not None])
    prefix, patches = (torch.cat(parts) for parts in zip(*((f.prefix, f.patches) for f in features), strict=True))
    return Seen(Features(cls, prefix, patches, features[0].grid_size), seen[0].windows, seen[0].image_size)


@dataclass(frozen=True)
class SeenBatches:
    """A loader of ``CachedImages`` as ``evaluate_segmentation`` reads it."""

    loader: Loader
    source: FeatureSource

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Seen, Tensor]]:
        for batch in self.loader:
            yield self.source(batch)
