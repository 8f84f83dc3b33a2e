"""Data sets that timm reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import error_of, plain_image
from PIL import Image
from timm.data import IterableImageDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from locatvit.data import DataSpec, open_dataset
from locatvit.data.images import UnreadableImage
from locatvit.data.loader import make_loader
from locatvit.data.timm_data import TimmStream
from locatvit.errors import LocAtError


def test_torchvision_folder_through_timm(image_folder: Path) -> None:
    val = open_dataset("torch/image_folder", task="classification", split="train", root=image_folder)
    assert val.spec.classes == ("cat", "dog")
    assert val.spec.name == "torch/image_folder"
    items = [(image.getpixel((0, 0))[0], label) for image, label in (val[index] for index in range(len(val)))]
    assert items == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)]


def test_unreadable_image_is_named(image_folder: Path) -> None:
    broken = image_folder / "train" / "cat" / "1.png"
    broken.write_bytes(b"broken")
    train = open_dataset("torch/image_folder", task="classification", split="train", root=image_folder)
    with pytest.raises(UnreadableImage, match=f"image {broken} cannot be read"):
        train[1]


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("hfds/cifar100", "datasets", "pip install datasets"),
        ("wds/imagenet", "webdataset", "pip install webdataset"),
        ("tfds/cifar10", "tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
    ],
)
def test_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch, name: str, module: str, remedy: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed, also where it is
    with pytest.raises(LocAtError, match=f"'{name}' needs the library {module}, which is not installed: {remedy}"):
        open_dataset(name, task="classification", split="train")


def test_what_timm_cannot_open_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        LocAtError, match=r"^timm cannot open 'torch/nothing' with split 'train' [^\n]*Unknown torchvision"
    ):
        open_dataset("torch/nothing", task="classification", split="train", root=tmp_path)
    with pytest.raises(LocAtError, match=rf"'torch/cifar10' .* root '{tmp_path}': .*not found.* pass download=True"):
        open_dataset("torch/cifar10", task="classification", split="val", root=tmp_path)
    with pytest.raises(LocAtError, match="unexpected keyword argument 'colour'"):
        open_dataset("torch/image_folder", task="classification", split="train", root=tmp_path, colour=3)


def test_number_of_classes_must_agree(image_folder: Path) -> None:
    with pytest.raises(LocAtError, match="num_classes is 5, but data set 'torch/image_folder' has 2 classes"):
        open_dataset("torch/image_folder", task="classification", split="train", root=image_folder, num_classes=5)


class Stream:
    """A reader in timm's sense: from front to back, a share for each worker."""

    num_samples = 12
    epoch = 0
    is_training = False
    batch_size = 1
    common_seed = 42

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_loader_cfg(self, num_workers: int) -> None:
        pass

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        worker = torch.utils.data.get_worker_info()
        place, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(place, self.num_samples, step):
            yield plain_image(number + 100 * self.epoch), number % 3


def stream(num_classes: int = 3) -> TimmStream:
    def transform(image: Image.Image) -> torch.Tensor:
        return pil_to_tensor(image)[0, 0, 0] + torch.rand(()) / 2

    spec = DataSpec("wds/numbers", "classification", tuple(map(str, range(num_classes))))
    return TimmStream(IterableImageDataset(None, reader=Stream()), spec, transform)


def read(loader: Any, epoch: int) -> list[list[float]]:
    loader.set_epoch(epoch)
    return [images.tolist() for images, _ in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_is_repeatable_and_follows_the_epoch(num_workers: int) -> None:
    loader = make_loader(stream(), batch_size=3, training=True, num_workers=num_workers, seed=1)  # type: ignore[arg-type]
    first, second, again = read(loader, 0), read(loader, 1), read(loader, 0)
    assert first == again
    assert [len(batch) for batch in first] == [3] * len(loader) == [3, 3, 3, 3]
    assert sorted(int(value) for batch in first for value in batch) == list(range(12))
    assert sorted(int(value) for batch in second for value in batch) == list(range(100, 112))
    assert {value % 1 for batch in first for value in batch}.isdisjoint(
        value % 1 for batch in second for value in batch
    )


def test_stream_evaluation_is_in_order_and_whole() -> None:
    loader = make_loader(stream(), batch_size=5, training=False, num_workers=2)  # type: ignore[arg-type]
    assert [[int(value) for value in batch] for batch in read(loader, 0)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11],
    ]
    assert (loader.spec.num_classes, loader.num_images) == (3, 12)


def test_stream_leaves_global_randomness_and_gives_plain_errors() -> None:
    state = torch.get_rng_state()
    loader = make_loader(stream(num_classes=2), batch_size=3, training=False)  # type: ignore[arg-type]
    assert str(error_of(loader)) == "wds/numbers has the label 2; classes are 0 to 1"
    assert torch.equal(state, torch.get_rng_state())


def test_stream_has_no_middle_to_start_at() -> None:
    loader = make_loader(stream(), batch_size=3, training=True)  # type: ignore[arg-type]
    with pytest.raises(
        LocAtError, match="wds/numbers is read as a stream, so an epoch cannot be resumed after 2 batches"
    ):
        loader.set_epoch(1, skip_batches=2)
