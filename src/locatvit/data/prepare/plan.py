"""What a preparation is made of: which images, where their labels are, and what the labels mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Integer
from numpy import ndarray

from locatvit.data.segmentation_sets import SegmentationSet
from locatvit.data.spec import Split
from locatvit.errors import LocAtError

TrainList = Literal["train", "trainaug"]


@dataclass(frozen=True)
class PrepareOptions:
    """What a converter may be told.

    Attributes:
        root: the official folder.
        train_list: of VOC 2012.
        sbd: folder of SBD, where it is not under ``root``.
    """

    root: Path
    train_list: TrainList = "train"
    sbd: Path | None = None


@dataclass(frozen=True)
class Item:
    """One image and its labels.

    Attributes:
        split: where it belongs.
        name: of both prepared files, without extension.
        image: the official file.
        source: the file that holds the labels, for messages.
        labels: what the plan's ``read`` takes: that file, or what was read of it.
    """

    split: Split
    name: str
    image: Path
    source: Path
    labels: Any


@dataclass(frozen=True)
class Plan:
    """All that a converter finds out before anything is written.

    Attributes:
        name: of the data set.
        classes: names, in the order of the prepared masks.
        items: every image with labels.
        read: an item's labels to official numbers, [H, W]; a function of a module, for worker processes.
        train_ids: official number to prepared value.
        expected: split to the official count; empty where none is known.
        other: the prepared value of official numbers that ``train_ids`` has not; None makes them an error.
        missing: files and folders that the official download has and ``root`` has not.
        known: the benchmark; None for a folder of one's own.
        lists: names of lists of training images to the names in them, written as ``NAME.txt``.
        record: more for the prepared folder's record.
        in_place: the layout is there already: it is checked, and copied only where an output is given.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    read: Callable[[Any], Integer[ndarray, "H W"]]
    train_ids: Mapping[int, int]
    expected: Mapping[Split, int]
    other: int | None = None
    missing: tuple[str, ...] = ()
    known: SegmentationSet | None = None
    lists: Mapping[str, tuple[str, ...]] | None = None
    record: Mapping[str, Any] | None = None
    in_place: bool = False

    def count(self, split: Split) -> int:
        """Images of a split that are there with their labels."""
        return sum(item.split == split for item in self.items)


def base_folder(root: Path, known: SegmentationSet, candidates: Iterable[str], *inside: str) -> Path:
    """The first of the candidate folders under ``root`` that has one of ``inside`` in it.

    Raises:
        LocAtError: none; names the official layout and page.
    """
    if not root.is_dir():
        raise LocAtError(f"no folder {root}; give the official download of {known.title}, from {known.page}")
    for candidate in candidates:
        if any((root / candidate / each).exists() for each in inside):
            return root / candidate
    raise LocAtError(
        f"{root} does not hold {known.title}: it has no {' or '.join(inside)}; expected {known.layout}. "
        f"Official download: {known.page}"
    )


def scan(folder: Path, suffixes: tuple[str, ...], missing: list[str], pattern: str = "*") -> dict[str, Path]:
    """Files by name without suffix; where there is no such folder none, and a line in ``missing``.

    Raises:
        LocAtError: two files of one name.
    """
    if not folder.is_dir():
        missing.append(f"the folder {folder}")
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        suffix = next((each for each in suffixes if path.name.endswith(each)), None)
        if suffix is None or path.name.startswith("."):
            continue
        name = path.name.removesuffix(suffix)
        if name in found:
            raise LocAtError(f"{folder} has {found[name].name} and {path.name}; a name must stand for one file")
        found[name] = path
    return found


def pair(
    split: Split,
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    missing: list[str],
    names: Iterable[str] | None = None,
) -> list[Item]:
    """Items of the names that have both an image and labels; the others' lacks go to ``missing``.

    Args:
        names: those that the split should have; None for all that are there.
    """
    items = []
    for name in sorted({*images, *labels}) if names is None else names:
        if name in images and name in labels:
            items.append(Item(split, name, images[name], labels[name], labels[name]))
        elif name in images:
            missing.append(f"the mask of {images[name]}")
        elif name in labels:
            missing.append(f"the image of {labels[name]}")
        else:
            missing.append(f"image and mask of {name}")
    return items


def read_list(path: Path, known: SegmentationSet) -> list[str]:
    """The names in a list, one a line.

    Raises:
        LocAtError: no such file, or nothing in it.
    """
    if not path.is_file():
        raise LocAtError(f"no file {path}, a list of {known.title}; expected {known.layout}. Download: {known.page}")
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise LocAtError(f"{path} is empty; it must have the name of an image in each line. Download: {known.page}")
    return names
