"""What is measured, as data: sizes, and how much of the whole. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class MiouCase:
    """mIoU of a set, image by image.

    Attributes:
        name: of the case.
        image_size: (height, width) of the masks in pixels.
        num_classes: C.
        num_images: of the set.
        num_distinct: different images that come in turn; together they are larger than a cache.
    """

    level: ClassVar[str] = "miou"
    name: str
    image_size: tuple[int, int] = (512, 683)
    num_classes: int = 150
    num_images: int = 2000
    num_distinct: int = 16


@dataclass(frozen=True)
class SearchCase:
    """The nearest rows of a memory for the patches of a set of images.

    Attributes:
        name: of the case.
        num_images: of the set; each has ``patches`` queries.
        num_rows: of the memory.
        width: of a feature.
        neighbours: k.
        images_a_turn: images that are searched in one call.
        turns: calls that are timed, each with images of its own; with fewer than the set has, it is a part of it.
        patches: of an image.
    """

    level: ClassVar[str] = "search"
    name: str
    num_images: int = 1000
    num_rows: int = 1_000_000
    width: int = 192
    neighbours: int = 30
    images_a_turn: int = 20
    turns: int = 3
    patches: int = 196

    @property
    def num_queries(self) -> int:
        """Of the whole set."""
        return self.num_images * self.patches

    @property
    def queries_a_turn(self) -> int:
        return self.images_a_turn * self.patches

    @property
    def measured_queries(self) -> int:
        """Of all turns."""
        return self.turns * self.queries_a_turn


Case = MiouCase | SearchCase


def cases(device_type: str, quick: bool) -> tuple[Case, ...]:
    """All cases for a kind of device; quick ones take seconds. Pixels are counted on the CPU."""
    if quick:
        return (
            MiouCase("miou-ade-quick", num_images=40, num_distinct=8),
            SearchCase("search-50k-quick", num_images=30, num_rows=50_000, images_a_turn=10),
        )
    on_cpu = device_type == "cpu"
    # all 196,000 queries take longer than ten minutes on two cores
    search = SearchCase("search-1m") if on_cpu else SearchCase("search-1m", images_a_turn=1000)
    return MiouCase("miou-ade"), search
