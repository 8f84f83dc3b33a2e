"""The cache of features: what it gives back, what it finds damaged, and where it stops."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.feature_cache import FeatureCache, from_entry, to_entry
from locatvit.evaluation.sliding import Seen, see
from locatvit.features import Features

CONTEXT = {"model": {"weights": "ab"}, "layer": -1}
MANY = 2**20


def features_of(images: torch.Tensor) -> Features:
    """A [CLS] token, one register and a patch for every 4x4 pixels, parts of one tensor as in a ViT."""
    height, width = images.shape[-2] // 4, images.shape[-1] // 4
    tokens = torch.arange(len(images) * (2 + height * width) * 3.0).reshape(len(images), -1, 3)
    return Features(tokens[:, 0], tokens[:, :2], tokens[:, 2:], (height, width))


def entry(seed: int = 0) -> dict[str, torch.Tensor]:
    seen = see(features_of, torch.zeros(1, 3, 8, 12), SegmentationConfig())
    return to_entry(seen, torch.full((5, 7), seed))


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.features")
    return path


@pytest.mark.parametrize("config", [SegmentationConfig(), SegmentationConfig("linear", window_size=8, window_stride=4)])
@pytest.mark.parametrize("largest", [3, 255, 700])
def test_what_was_kept_is_read_back_bit_for_bit(tmp_path, config, largest):
    seen, mask = see(features_of, torch.zeros(1, 3, 8, 12), config), torch.tensor([[0, 1, largest]])
    cache = FeatureCache(tmp_path, MANY, CONTEXT)
    key = cache.key("image 1")
    assert cache.read(key) is None
    assert cache.write(key, to_entry(seen, mask))
    stored = FeatureCache(tmp_path, MANY, CONTEXT).read(key)
    again, again_mask = from_entry(stored)
    assert (again.windows, again.image_size) == (seen.windows, seen.image_size)
    assert again.features.grid_size == seen.features.grid_size
    for name in ("cls", "prefix", "patches"):
        assert torch.equal(getattr(again.features, name), getattr(seen.features, name))
    assert torch.equal(again_mask, mask)
    assert again_mask.dtype == torch.int64
    assert stored["mask"].element_size() == (1 if largest <= 255 else 4)


def test_a_backbone_without_cls_comes_back_without(tmp_path):
    patches = torch.randn(1, 6, 3)
    seen = Seen(Features(None, patches[:, :0], patches, (2, 3)), ((0, 0, 8, 12),), (8, 12))
    cache = FeatureCache(tmp_path, MANY, CONTEXT)
    cache.write("aa", to_entry(seen, torch.zeros(2, 2)))
    assert from_entry(cache.read("aa"))[0].features.cls is None


def test_keys_hold_the_image_and_all_that_its_features_depend_on(tmp_path):
    caches = [FeatureCache(tmp_path, MANY, context) for context in (CONTEXT, {**CONTEXT, "layer": -2}, {})]
    keys = {cache.key(item) for cache in caches for item in ("image 1", "image 2")}
    assert len(keys) == 6
    assert caches[0].key("image 1") == FeatureCache(tmp_path / "other", 1, dict(reversed(CONTEXT.items()))).key(
        "image 1"
    )


@pytest.mark.parametrize("damage", ["flipped", "shortened", "emptied", "another's"])
def test_a_damaged_entry_is_removed_and_made_anew(tmp_path, caplog, damage):
    cache = FeatureCache(tmp_path, MANY, CONTEXT)
    key = cache.key("image 1")
    cache.write(key, entry())
    path, content = only_file(tmp_path), only_file(tmp_path).read_bytes()
    if damage == "another's":
        other = cache.key("image 2")
        cache.write(other, entry(1))
        content = cache.path(other).read_bytes()
        cache.path(other).unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        content = {"flipped": flipped, "shortened": content[:-1], "emptied": b""}[damage]
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.read(key) is None
    assert f"the features in {path} are damaged; they are computed anew" in caplog.text
    assert not path.exists()
    assert cache.write(key, entry())
    assert torch.equal(cache.read(key)["patches"], entry()["patches"])


def test_it_stops_at_its_limit_says_so_once_and_keeps_what_it_has(tmp_path, caplog):
    cache = FeatureCache(tmp_path, MANY, CONTEXT)
    cache.write("00", entry())
    size = only_file(tmp_path).stat().st_size
    limit = 10.5 * size
    cache = FeatureCache(tmp_path, limit, CONTEXT)
    with caplog.at_level(logging.WARNING):
        kept = [cache.write(cache.key(str(number)), entry()) for number in range(20)]
    assert kept == [True] * 9 + [False] * 11, "one was there before"
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.features")) <= limit
    assert len(caplog.records) == 1
    assert f"the feature cache {tmp_path} is full" in caplog.text
    assert "Raise --cache.max_gib or empty the folder" in caplog.text
    assert cache.read(cache.key("3")) is not None
    assert cache.read(cache.key("15")) is None


def test_processes_that_share_a_folder_keep_its_limit_together(tmp_path):
    FeatureCache(tmp_path, MANY, CONTEXT).write("00", entry())
    size = only_file(tmp_path).stat().st_size
    limit = 40 * size
    caches = [FeatureCache(tmp_path, limit, CONTEXT) for _ in range(5)]
    for number in range(60):
        for place, cache in enumerate(caches):
            cache.write(cache.key(f"{place} {number}"), entry())
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.features"))
    assert 0.8 * limit < held <= limit


def test_a_limit_of_0_keeps_nothing_and_touches_no_disk(tmp_path, caplog):
    cache = FeatureCache(tmp_path / "features", 0, CONTEXT)
    assert not cache.write("00", entry())
    assert not list(tmp_path.iterdir())
    assert not caplog.records
    with pytest.raises(LocAtError, match="max_bytes is -1; it must be 0, to keep nothing, or more"):
        FeatureCache(tmp_path, -1, CONTEXT)


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "features").write_text("a file in the place of the folder")
    cache = FeatureCache(tmp_path / "features", MANY, CONTEXT)
    with caplog.at_level(logging.WARNING):
        assert not any(cache.write(key, entry()) for key in ("00", "11"))
    assert len(caplog.records) == 1
    assert "cannot write" in caplog.text
    assert "Features that are not kept are computed each time" in caplog.text
