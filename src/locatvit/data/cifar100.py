"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, 100 classes."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from locatvit.data.images import read_image
from locatvit.data.spec import DataSpec, ImageDataset, Split
from locatvit.errors import LocAtError

LAYOUT = "train-*.parquet and test-*.parquet with the columns img (bytes, path) and fine_label"
IMAGE_SIZE = (32, 32)
_FILES: dict[Split, str] = {"train": "train-*.parquet", "val": "test-*.parquet"}
CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip


def open_cifar100(
    split: Split, root: Path | None, transform: Callable[..., Any] | None = None, download: bool = False
) -> ImageDataset:
    """Open CIFAR-100 from Parquet files where ``root`` has them, else as torchvision keeps it.

    Args:
        split: ``"train"``, or ``"val"`` for the test images.
        root: folder with the Parquet files, or torchvision's, which holds ``cifar-100-python``.
        transform: PIL image to anything.
        download: let torchvision download the set into ``root`` where it is not there.

    Raises:
        LocAtError: no root, neither form in it, or a Parquet file without the columns.
    """
    if root is None:
        raise LocAtError(f"data set 'cifar100' needs root: a folder with {LAYOUT}, or any folder with download=True")
    files = sorted(root.glob(_FILES[split]))
    return ParquetCifar100(files, transform) if files else TorchvisionCifar100(split, root, transform, download)


class ParquetCifar100(Dataset[tuple[Any, int]]):
    """CIFAR-100 from Parquet files with encoded images. All bytes stay in memory; images are decoded when
    asked for.

    Args:
        files: Parquet files with the columns ``img`` (struct of ``bytes`` and ``path``) and ``fine_label``.
        transform: PIL image to anything.
    """

    spec = DataSpec("cifar100", "classification", CLASSES, image_size=IMAGE_SIZE)

    def __init__(self, files: list[Path], transform: Callable[..., Any] | None = None) -> None:
        self.transform = transform
        tables = [_read_table(path) for path in files]
        table = pa.concat_tables(tables).combine_chunks()
        if not len(table):
            raise LocAtError(f"{', '.join(map(str, files))} hold no rows; expected {LAYOUT}")
        self._files = files
        self._first_rows = list(accumulate((len(each) for each in tables), initial=0))
        self._images = table["bytes"]
        self.labels = table["label"].to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        encoded = self._images[index].as_py()
        image = read_image(io.BytesIO(encoded or b""), self.describe(index))
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def describe(self, index: int) -> str:
        """File and row."""
        file = bisect_right(self._first_rows, index) - 1
        return f"{self._files[file]}, row {index - self._first_rows[file]}"


def _read_table(path: Path) -> pa.Table:
    """The encoded images and labels of one file, as columns ``bytes`` and ``label``."""
    try:
        table = pq.read_table(path, columns=["img", "fine_label"])
        columns = {
            "bytes": pc.struct_field(table["img"], "bytes"),
            "label": table["fine_label"].cast(pa.int64()),
        }
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise LocAtError(f"{path} cannot be read as CIFAR-100 ({reason}); expected {LAYOUT}") from error
    labels = columns["label"].to_numpy()
    if columns["label"].null_count or (len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES)):
        raise LocAtError(f"{path} has a fine_label outside 0 to {len(CLASSES) - 1}; is it CIFAR-100?")
    return pa.table(columns)


class TorchvisionCifar100(Dataset[tuple[Any, int]]):
    """CIFAR-100 as ``torchvision.datasets.CIFAR100`` keeps it.

    The original files are pickles. torchvision unpickles them after it has compared their MD5 with the
    published one; nothing else is unpickled.
    """

    spec = DataSpec("cifar100", "classification", CLASSES, image_size=IMAGE_SIZE)

    def __init__(
        self, split: Split, root: Path, transform: Callable[..., Any] | None = None, download: bool = False
    ) -> None:
        from torchvision.datasets import CIFAR100

        self.transform = transform
        try:
            self._data = CIFAR100(root, train=split == "train", download=download)
        except RuntimeError as error:
            raise LocAtError(
                f"{root} has neither {LAYOUT} nor torchvision's cifar-100-python; give another root, or download=True"
            ) from error
        self.labels = np.asarray(self._data.targets)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._data[index]
        return (self.transform(image) if self.transform else image), label

    def describe(self, index: int) -> str:
        """Folder and index."""
        return f"{self._data.root}, image {index}"
