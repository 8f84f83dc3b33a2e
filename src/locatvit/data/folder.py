"""Image folders for classification: a folder a split, a folder a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import make_dataset

from locatvit.data.images import IMAGE_EXTENSIONS, read_image
from locatvit.data.spec import DataSpec, Split
from locatvit.errors import LocAtError

LAYOUT = "train/<class>/<name>.jpg and val/<class>/<name>.jpg (validation/ or test/ will do for val/)"
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "test")}


class ImageFolder(Dataset[tuple[Any, int]]):
    """``root/train/<class>/*`` and ``root/val/<class>/*``, as torchvision's ``ImageFolder`` reads them.

    Classes are the sorted folder names of the training split, so that both splits number them alike, also
    where the validation split lacks one. Without a training split they are those of the split itself.

    Args:
        split: ``"train"`` or ``"val"`` (the first of ``val``, ``validation``, ``test`` that is there).
        root: the folder that holds the splits.
        transform: PIL image to anything.

    Raises:
        LocAtError: no such folder, no class or no image in it, or a class that the training split does not
            have.
    """

    def __init__(self, split: Split, root: Path | None, transform: Callable[..., Any] | None = None) -> None:
        folder = _split_folder(root, split)
        train = folder.parent / "train"
        classes = _class_names(train if train.is_dir() else folder)
        unknown = sorted(set(_class_names(folder)) - set(classes))
        if unknown:
            raise LocAtError(f"{folder} has the class {unknown[0]!r}, which {train} has not; splits must share classes")
        self.spec = DataSpec("folder", "classification", tuple(classes))
        self.transform = transform
        numbers = {name: number for number, name in enumerate(classes)}
        present = {name: number for name, number in numbers.items() if (folder / name).is_dir()}
        self.samples: list[tuple[str, int]] = make_dataset(
            str(folder), present, extensions=IMAGE_EXTENSIONS, allow_empty=True
        )
        if not self.samples:
            raise LocAtError(f"{folder} holds no images; expected {LAYOUT}, with one of {', '.join(IMAGE_EXTENSIONS)}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image: Image.Image = read_image(Path(path), path)
        return (self.transform(image) if self.transform else image), label

    def describe(self, index: int) -> str:
        """The file's path."""
        return self.samples[index][0]


def _split_folder(root: Path | None, split: Split) -> Path:
    if root is None:
        raise LocAtError(f"data set 'folder' needs root: the folder that holds {LAYOUT}")
    for name in _FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise LocAtError(f"no folder {root / _FOLDERS[split][0]} for split {split!r}; expected under {root}: {LAYOUT}")


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise LocAtError(f"{folder} has no class folders; expected {LAYOUT}")
    return names
