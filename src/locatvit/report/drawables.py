"""What the figures draw: metric rows, images, masks and maps, checked and in one form. No plotting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from locatvit.errors import LocAtError
from locatvit.report.palette import BACKGROUND, colours

Array = np.ndarray
MetricRows = Sequence[Mapping[str, Any]]


def horizontal_key(runs: Sequence[MetricRows]) -> str:
    """What the horizontal axis counts: ``"epoch"``, or ``"update"`` where a row has no epoch."""
    return "epoch" if all("epoch" in row for run in runs for row in run) else "update"


def series(run: MetricRows, key: str, over: str) -> dict[float, float]:
    """``over`` to the mean of ``key`` over the rows that have both, in order."""
    found: dict[float, list[float]] = {}
    for row in run:
        if row.get(key) is not None and row.get(over) is not None:
            found.setdefault(row[over], []).append(row[key])
    return {place: fmean(values) for place, values in sorted(found.items())}


def check_same_length(lengths: Mapping[str, int]) -> None:
    """Raise ``LocAtError`` unless all lists of a sheet are equally long, and none is empty."""
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise LocAtError(f"a sheet needs equally many of each, one or more; it got {told}")


def check_image(image: Num[Array, "h w 3"], name: str) -> tuple[int, int]:
    """(height, width) in pixels; raises ``LocAtError`` unless the image is ``[h, w, 3]``."""
    shape = np.shape(image)
    if len(shape) != 3 or shape[2] != 3:
        raise LocAtError(f"{name} has the shape {shape}; it must be (height, width, 3)")
    return shape[0], shape[1]


def check_mask(
    mask: Integer[Array, "h w"], name: str, size: tuple[int, int], num_classes: int, ignore_index: int
) -> None:
    """Raise ``LocAtError`` unless the mask is as large as its image and every label has a name."""
    if np.shape(mask) != size:
        raise LocAtError(f"{name} has the shape {np.shape(mask)}; it must be {size}, as large as its image")
    foreign = [int(label) for label in np.unique(mask) if not 0 <= label < num_classes and label != ignore_index]
    if foreign:
        rule = f"0 to {num_classes - 1} or ignore_index {ignore_index}"
        raise LocAtError(f"{name} holds the label {foreign[0]}; it must be {rule}")


def check_colours(colours: Sequence[Any], classes: Sequence[str]) -> None:
    """Raise ``LocAtError`` unless there is a colour for each class."""
    if len(colours) != len(classes):
        raise LocAtError(f"there are {len(colours)} colours for {len(classes)} classes; give one a class")


def common_grid(
    points: Sequence[tuple[int, int]], maps_by_name: Mapping[str, Sequence[Float[Array, "h w"]]]
) -> tuple[int, int]:
    """The (height, width) in patches that all maps share.

    Raises:
        LocAtError: the maps differ in shape, a weight is below zero or no number, or a point is off the grid.
    """
    shapes = sorted({np.shape(weights) for maps in maps_by_name.values() for weights in maps})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise LocAtError(f"the attention maps have the shapes {shapes}; all must be one (height, width)")
    for name, maps in maps_by_name.items():
        least = min(float(np.min(weights)) for weights in maps)
        if not least >= 0:
            raise LocAtError(f"the attention maps of {name} hold {least}; weights must be numbers >= 0")
    height, width = shapes[0]
    for row, column in points:
        if not (0 <= row < height and 0 <= column < width):
            raise LocAtError(f"point ({row}, {column}) is outside the grid {shapes[0]}; give (row, column) in patches")
    return height, width


def class_palette(classes: Sequence[str]) -> list[str]:
    """A colour a class; dark for one named "background", so that the things on it stand out."""
    rest = iter(colours(len(classes)))
    return [BACKGROUND if name.lower() == "background" else next(rest) for name in classes]


def as_fractions(image: Num[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """uint8 or fractions to fractions in [0, 1]."""
    image = np.asarray(image)
    return image / 255.0 if image.dtype == np.uint8 else np.clip(image, 0.0, 1.0)
