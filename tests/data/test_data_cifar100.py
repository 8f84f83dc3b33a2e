"""CIFAR-100 from Parquet files and from torchvision's files."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import plain_image, png_bytes, real_data
from torchvision.datasets import CIFAR100

from locatvit.data import open_dataset
from locatvit.data.cifar100 import CLASSES
from locatvit.data.images import UnreadableImage
from locatvit.errors import LocAtError

Write = Callable[..., Path]
LAYOUT = r"expected train-\*.parquet and test-\*.parquet with the columns img \(bytes, path\) and fine_label"


def row(value: int, label: int) -> tuple[bytes, int]:
    return png_bytes(plain_image(value, (32, 32))), label


def test_shards_are_joined_in_order_and_val_is_the_test_split(parquet_folder: Write) -> None:
    root = parquet_folder(train_0=[row(1, 5), row(2, 99)], train_1=[row(3, 0)], test_0=[row(4, 7)])
    train = open_dataset("cifar100", task="classification", split="train", root=root)
    items = [train[index] for index in range(len(train))]
    assert [(image.getpixel((0, 0)), image.size, label) for image, label in items] == [
        ((1, 1, 1), (32, 32), 5),
        ((2, 2, 2), (32, 32), 99),
        ((3, 3, 3), (32, 32), 0),
    ]
    assert train.spec.num_classes == 100
    assert train.spec.image_size == (32, 32)
    assert train.describe(2) == f"{root}/train-1.parquet, row 0"
    val = open_dataset("cifar100", task="classification", split="val", root=root, transform=np.asarray)
    assert len(val) == 1
    assert val[0][0].max() == 4


def test_broken_bytes_name_file_and_row(parquet_folder: Write) -> None:
    root = parquet_folder(train_0=[row(1, 5), (b"no image", 6), (None, 6)])
    train = open_dataset("cifar100", task="classification", split="train", root=root)
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match=rf"train-0.parquet, row {index} cannot be read"):
            train[index]


@pytest.mark.parametrize("download", [False, None])
def test_folder_without_either_form(tmp_path: Path, download: bool | None) -> None:
    options = {} if download is None else {"download": download}
    with pytest.raises(LocAtError, match=r"neither train-\*.parquet and .* nor torchvision's .* or download=True"):
        open_dataset("cifar100", task="classification", split="train", root=tmp_path, **options)


def test_root_is_needed() -> None:
    with pytest.raises(LocAtError, match=r"'cifar100' needs root: a folder with train-\*.parquet"):
        open_dataset("cifar100", task="classification", split="train")


def test_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"something else")
    with pytest.raises(LocAtError, match=rf"train-0.parquet cannot be read as CIFAR-100 .*{LAYOUT}"):
        open_dataset("cifar100", task="classification", split="train", root=tmp_path)


def test_parquet_with_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "label": [1]}), tmp_path / "train-0.parquet")
    with pytest.raises(LocAtError, match=rf"train-0.parquet cannot be read as CIFAR-100 .*{LAYOUT}"):
        open_dataset("cifar100", task="classification", split="train", root=tmp_path)


@pytest.mark.parametrize("label", [-1, 100])
def test_label_out_of_range(parquet_folder: Write, label: int) -> None:
    root = parquet_folder(train_0=[row(1, label)])
    with pytest.raises(LocAtError, match="fine_label outside 0 to 99; is it CIFAR-100"):
        open_dataset("cifar100", task="classification", split="train", root=root)


def test_parquet_without_rows(parquet_folder: Write) -> None:
    with pytest.raises(LocAtError, match="hold no rows"):
        open_dataset("cifar100", task="classification", split="train", root=parquet_folder(train_0=[]))


def test_torchvision_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    contents = {
        "train": {"data": pixels, "fine_labels": [3, 98]},
        "test": {"data": pixels[:1], "fine_labels": [4]},
        "meta": {"fine_label_names": list(CLASSES)},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    # torchvision compares with the published sums before it unpickles; ours are other files
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    train = open_dataset("cifar100", task="classification", split="train", root=tmp_path)
    assert [train[index][1] for index in range(len(train))] == [3, 98]
    image, _ = train[1]
    assert np.array_equal(np.asarray(image), pixels[1].reshape(3, 32, 32).transpose(1, 2, 0))
    assert len(open_dataset("cifar100", task="classification", split="val", root=tmp_path)) == 1
    assert train.describe(1).endswith("image 1")


def test_real_files() -> None:
    root = real_data("cifar100")
    val = open_dataset("cifar100", task="classification", split="val", root=root)
    assert len(val) == 10_000
    assert (root / "classes.txt").read_text().split() == list(val.spec.classes)
    assert np.bincount(val.labels).tolist() == [100] * 100  # type: ignore[attr-defined]
    image, label = val[9_999]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert 0 <= label < 100
