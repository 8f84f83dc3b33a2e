"""Small data sets on the disk, made anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import plain_image
from PIL import Image


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes; 3 + 2 training images, 1 + 1 validation images. The grey value is the number."""
    values = iter(range(100))
    for split, counts in (("train", {"cat": 3, "dog": 2}), ("val", {"cat": 1, "dog": 1})):
        for name, count in counts.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                plain_image(next(values)).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def masks_folder(tmp_path: Path) -> Path:
    """Three classes; 3 training and 2 validation pairs of 6 x 8 pixels, each with all classes and 255."""
    mask = np.array([[0, 1, 2, 255] * 2] * 6, dtype=np.uint8)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(count):
            plain_image(number).save(tmp_path / "images" / split / f"{number}.jpg")
            Image.fromarray(mask).save(tmp_path / "annotations" / split / f"{number}.png")
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    return tmp_path


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``NAME.parquet`` files of images (bytes) and labels into one folder."""

    def write(**files: list[tuple[bytes | None, int]]) -> Path:
        for name, rows in files.items():
            images = [{"bytes": image, "path": f"{number}.png"} for number, (image, _) in enumerate(rows)]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            labels = [label for _, label in rows]
            table = pa.table({"img": pa.array(images, kind), "fine_label": pa.array(labels, pa.int64())})
            pq.write_table(table, tmp_path / f"{name.replace('_', '-')}.parquet")
        return tmp_path

    return write
