"""The numbers of a split, against numpy on the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import official_layouts as official
from locatvit.data import open_dataset
from locatvit.data.inspection import inspect_split, spread
from locatvit.data.spec import ImageDataset

LABELS = [[0, 1], [1, 255], [1, 1, 1, 0, 255]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return official.prepared(tmp_path, ["road", "sky", "tree"], {"train": LABELS})


def train(root: Path) -> ImageDataset:
    return open_dataset("folder", task="segmentation", split="train", root=root)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_numbers(num_workers: int, root: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = inspect_split(train(root), range(3), num_workers=num_workers, on_progress=lambda *step: steps.append(step))
    pixels = np.concatenate([np.asarray(official.image(number)).reshape(-1, 3) for number in range(3)]) / 255
    labels = np.concatenate([official.columns(values).ravel() for values in LABELS])
    assert found.mean == pytest.approx(pixels.mean(axis=0).tolist())
    assert found.std == pytest.approx(pixels.std(axis=0).tolist())
    assert found.class_pixels == tuple(int((labels == number).sum()) for number in range(3))
    assert found.class_images == (2, 3, 0)
    assert found.ignored_share == pytest.approx((labels == 255).mean())
    assert sum(found.class_shares) + found.ignored_share == pytest.approx(1)
    assert (found.num_images, found.num_read, found.unreadable, found.faulty) == (3, 3, (), ())
    assert found.sizes == ((official.SIZE, 3),)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_faulty_files_are_named_and_left_out(root: Path) -> None:
    (root / "images/train/0.png").write_bytes(b"broken")
    official.save_labels(root / "annotations/train/1.png", official.columns([3]))
    found = inspect_split(train(root), range(3))
    assert (found.num_read, len(found.unreadable), len(found.faulty)) == (1, 1, 1)
    assert f"image {root}/images/train/0.png cannot be read" in found.unreadable[0]
    assert "has the value 3; " in found.faulty[0]
    assert found.class_images == (1, 1, 0)


def test_nothing_to_read(root: Path) -> None:
    found = inspect_split(train(root), [])
    assert (found.num_read, found.mean, found.std, found.quantile_size(0.5)) == (0, None, None, None)
    assert found.ignored_share == 0


def test_sizes(root: Path) -> None:
    for number, size in enumerate([(20, 4), (20, 4), (8, 30)]):
        official.save(root / "images/train" / f"{number}.png", official.image(number, size))
        official.save_labels(root / "annotations/train" / f"{number}.png", official.columns([0], size))
    found = inspect_split(train(root), range(3))
    assert found.sizes == (((20, 4), 2), ((8, 30), 1))
    assert [found.quantile_size(quantile) for quantile in (0, 0.5, 1)] == [(8, 4), (20, 4), (20, 30)]


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(5, None, [0, 1, 2, 3, 4]), (3, 7, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (9, 0, [])],
)
def test_spread(count: int, most: int | None, expected: list[int]) -> None:
    assert spread(count, most) == expected
