"""What a data set says about itself. No torch here: help and reports read it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from locatvit.errors import LocAtError

Task = Literal["classification", "segmentation"]
Split = Literal["train", "val"]

TASKS: tuple[Task, ...] = ("classification", "segmentation")
SPLITS: tuple[Split, ...] = ("train", "val")
IGNORE_INDEX = 255
"""The mask value of pixels without a label, in every segmentation set that we read."""
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""


@dataclass(frozen=True)
class DataSpec:
    """What models and metrics need to know of a data set.

    Attributes:
        name: the name it was opened by, e.g. ``"cifar100"``.
        task: ``"classification"`` or ``"segmentation"``.
        classes: names of the classes; the place in the tuple is the label.
        ignore_index: mask value that counts neither in the loss nor in the metric; None for classification.
        image_size: (height, width) in pixels where all images share it, else None.
        palette: a colour a class, where the data set has its own; ``colours`` always has them.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    ignore_index: int | None = None
    image_size: tuple[int, int] | None = None
    palette: tuple[Colour, ...] | None = None

    def __post_init__(self) -> None:
        if not self.classes:
            raise LocAtError(f"data set {self.name} has no classes; it needs one at least")
        if self.ignore_index is not None and 0 <= self.ignore_index < len(self.classes):
            raise LocAtError(
                f"data set {self.name} has {len(self.classes)} classes and ignore_index {self.ignore_index}, "
                "which is one of them; 255 classes are the most that an 8-bit mask can hold"
            )
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise LocAtError(
                f"data set {self.name} has {len(self.classes)} classes and a palette of {len(self.palette)} colours; "
                "it needs a colour a class, or no palette"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes, the ignored label not counted."""
        return len(self.classes)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """A colour a class: the palette, or where there is none PASCAL VOC's colour map."""
        return voc_colours(self.num_classes) if self.palette is None else self.palette


def voc_colours(count: int) -> tuple[Colour, ...]:
    """The first colours of PASCAL VOC's map (Everingham et al. 2010): up to 256, all different, 0 is black.

    Bits 0, 1 and 2 of the number are the highest bits of red, green and blue, bits 3, 4 and 5 the next, and so on.
    """
    return tuple(
        (_spread_bits(number), _spread_bits(number >> 1), _spread_bits(number >> 2)) for number in range(count)
    )


def _spread_bits(number: int) -> int:
    """Every third bit of a number, the lowest first, as a byte that begins with them."""
    return sum(((number >> 3 * place) & 1) << (7 - place) for place in range(8))


class ImageDataset(Protocol):
    """What ``open_dataset`` returns and ``make_loader`` takes.

    Items are ``(image, label)`` for classification, with ``label`` an int, and ``(image, mask)`` for
    segmentation, with ``mask`` an int64 tensor ``[H, W]``. ``image`` is a PIL image in RGB, or what
    ``transform`` makes of it: ``transform(image)`` for classification, ``transform(image, mask)``, which
    returns both, for segmentation.
    """

    spec: DataSpec
    transform: Callable[..., Any] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def describe(self, index: int) -> str:
        """The file or row that an index stands for, for messages."""
        ...
