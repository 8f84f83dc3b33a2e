"""What is prepared or inspected, as data. No torch: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from locatvit.data.prepare import MAX_WORKERS
from locatvit.errors import LocAtError


@dataclass(frozen=True)
class PrepareConfig:
    """An official download, and where its prepared form goes.

    Attributes:
        root: folder of the official download, unpacked. Its files stay as they are.
        output: folder of the prepared data; null for locatvit_NAME in the root. Images are second names (hard links)
            of the official files where the disk allows it, and take no room.
        num_workers: processes that convert; 0 converts in the command's own. Null for one a core, 8 at most, and none
            for a small data set.
        train_list: of voc2012: train (1,464 images), or trainaug (10,582), which needs SBD's masks too.
        sbd: of voc2012 with trainaug: folder of SBD (benchmark_RELEASE), where it is not in the root.
        partial: prepare the images that are there, though they are fewer than the data set officially has.

    Raises:
        LocAtError: a value outside its range.
    """

    root: Path | None = None
    output: Path | None = None
    num_workers: int | None = None
    train_list: Literal["train", "trainaug"] = "train"
    sbd: Path | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        _check_workers(self.num_workers)


@dataclass(frozen=True)
class InspectedData:
    """Which data.

    Attributes:
        name: ade20k, pascal_context, coco_stuff, coco_stuff_10k, voc2012, cityscapes, camvid, folder or scenes.
        root: folder of the prepared data, or the official one in which it was prepared.
        train_options: of the training split, e.g. {"train_list": "train"} for voc2012.
        val_options: of the validation split.
    """

    name: str = "folder"
    root: Path | None = None
    train_options: dict[str, Any] = field(default_factory=dict)
    val_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InspectConfig:
    """What is looked at, and where the outcome goes.

    Attributes:
        data: which data.
        split: train, val or both.
        output: a PNG file for a sheet of images beside their masks; a JSON file of the same name holds all numbers.
            Null writes nothing.
        images: how many the sheet has, evenly spread over the splits.
        max_images: how many of a split are read for the numbers, evenly spread; null for all.
        num_workers: threads that read; null for one a core, 8 at most.

    Raises:
        LocAtError: a value outside its range.
    """

    data: InspectedData = field(default_factory=InspectedData)
    split: Literal["both", "train", "val"] = "both"
    output: Path | None = None
    images: int = 16
    max_images: int | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix.lower() != ".png":
            raise LocAtError(f"output is {self.output}; it must end in .png")
        if not 1 <= self.images <= 100:
            raise LocAtError(f"images is {self.images}; it must be a whole number from 1 to 100")
        if self.max_images is not None and self.max_images < 1:
            raise LocAtError(f"max_images is {self.max_images}; it must be a whole number >= 1, or null for all")
        _check_workers(self.num_workers)


def _check_workers(number: int | None) -> None:
    if number is not None and not 0 <= number <= MAX_WORKERS:
        raise LocAtError(f"num_workers is {number}; it must be a whole number from 0 to {MAX_WORKERS}, or null")
