"""Sheets of segmented images: image, truth, prediction and errors, a row an image.

Put together pixel by pixel and not by a plotting library: an image that is small enough is shown as it is, one pixel
of it on one of the sheet's (or on a whole number of them), and larger ones are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from locatvit.errors import LocAtError
from locatvit.report.drawables import check_colours, check_image, check_mask
from locatvit.report.lettering import PAPER, Array, Colour, Entry, hatch, legend, line_height, write
from locatvit.storage import atomic_write

WRONG: Colour = (0xE0, 0x1E, 0x2B)
RIGHT: Colour = (0xCC, 0xCC, 0xCC)
_HEADS = ("Image", "Truth", "Prediction", "Errors")
# in pixels: the largest side of a picture, the least width of a column, spaces, and letters
_CELL, _LEAST_COLUMN = 512, 230
_MARGIN, _GAP = 28, 16
_TITLE, _HEAD, _TEXT = 30, 22, 20


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet.

    Attributes:
        name: what stands above it, e.g. the file's name.
        image: the image.
        truth: class of every pixel, or the ignored label.
        prediction: class of every pixel.
        score: of this image alone, a fraction; it is shown as its mIoU.
    """

    name: str
    image: UInt8[Array, "H W 3"]
    truth: Integer[Array, "H W"]
    prediction: Integer[Array, "H W"]
    score: float


def write_sheet(
    path: Path,
    rows: Sequence[SheetRow],
    classes: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    ignore_index: int | None = 255,
) -> Path:
    """Draw the rows, write them as a PNG and return its path.

    In the errors' picture wrong pixels are red, right ones show the image in pale grey, and those without a label are
    hatched. The legend has the classes that show in truth or prediction.

    Args:
        path: the file.
        rows: one or more.
        classes: names; the place is the label.
        colours: one a class.
        title: the sheet's heading.
        ignore_index: label of the pixels that do not count, None if all do.

    Raises:
        LocAtError: no rows; not as many colours as classes; a mask that is not as large as its image, or a label
            without a name; the file cannot be written.
    """
    sheet = draw_sheet(rows, classes, colours, title, ignore_index)
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG"))
    return Path(path)


def draw_sheet(
    rows: Sequence[SheetRow],
    classes: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    ignore_index: int | None = 255,
) -> Image.Image:
    """The sheet as a picture; see ``write_sheet``."""
    _check(rows, classes, colours, ignore_index)
    palette = np.array(colours, np.uint8)
    pictures = [_pictures(row, palette, ignore_index) for row in rows]
    column = max(_LEAST_COLUMN, *(row[0].width for row in pictures))
    width = 4 * column + 3 * _GAP
    key = legend(_entries(rows, classes, colours, ignore_index), width, _TEXT)
    head = line_height(_TITLE) + line_height(_HEAD)
    height = head + sum(line_height(_TEXT) + row[0].height + _GAP for row in pictures) + _GAP + key.height
    canvas = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), PAPER)
    write(canvas, (_MARGIN, _MARGIN), title, _TITLE, width=width, bold=True)
    lefts = [_MARGIN + place * (column + _GAP) for place in range(4)]
    for left, name in zip(lefts, _HEADS, strict=True):
        write(canvas, (left, _MARGIN + line_height(_TITLE)), name, _HEAD, width=column, bold=True)
    top = _MARGIN + head
    for row, shown in zip(rows, pictures, strict=True):
        _captions(canvas, top, lefts, column, row, ignore_index)
        top += line_height(_TEXT)
        for left, picture in zip(lefts, shown, strict=True):
            canvas.paste(picture, (left, top))
        top += shown[0].height + _GAP
    canvas.paste(key, (_MARGIN, top + _GAP))
    return canvas


def shown_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) on the picture: within ``longest`` pixels, enlarged by whole numbers only."""
    scale = longest / max(height, width)
    if scale >= 1:
        return height * int(scale), width * int(scale)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(pixels: UInt8[Array, "H W 3"], size: tuple[int, int]) -> Image.Image:
    """A picture of (height, width): enlarged to clear pixels, or averaged."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    enlarges = size[0] >= image.height and size[1] >= image.width
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX)


def _check(
    rows: Sequence[SheetRow], classes: Sequence[str], colours: Sequence[Colour], ignore_index: int | None
) -> None:
    if not rows:
        raise LocAtError("rows is empty; a sheet needs one image or more")
    check_colours(colours, classes)
    label = -1 if ignore_index is None else ignore_index
    for row in rows:
        size = check_image(row.image, f"image {row.name}")
        check_mask(row.truth, f"the truth of {row.name}", size, len(classes), label)
        check_mask(row.prediction, f"the prediction of {row.name}", size, len(classes), label)


def ignored(mask: Integer[Array, "H W"], ignore_index: int | None) -> Bool[Array, "H W"]:
    """Pixels that do not count; none where all do."""
    return np.zeros(mask.shape, bool) if ignore_index is None else np.asarray(mask == ignore_index)


def _pictures(row: SheetRow, palette: UInt8[Array, "C 3"], ignore_index: int | None) -> list[Image.Image]:
    """Image, truth, prediction and errors, all of the size they have on the sheet."""
    size = shown_size(row.truth.shape[0], row.truth.shape[1], _CELL)
    without = ignored(row.truth, ignore_index)
    return [
        resized(row.image, size),
        _hatched(_painted(row.truth, palette), without, size),
        _hatched(_painted(row.prediction, palette), ignored(row.prediction, ignore_index), size),
        _hatched(_errors(row), without, size),
    ]


def _painted(mask: Integer[Array, "H W"], palette: UInt8[Array, "C 3"]) -> UInt8[Array, "H W 3"]:
    # the ignored label is hatched afterwards, whatever stands there
    return palette[np.clip(mask, 0, len(palette) - 1)]


def _errors(row: SheetRow) -> UInt8[Array, "H W 3"]:
    """The image in pale grey, and what is wrong in red, a little darker where the image is."""
    luminance = np.asarray(Image.fromarray(np.ascontiguousarray(row.image)).convert("L"), np.float32)[..., None] / 255
    right = np.repeat(140 + 105 * luminance, 3, axis=-1)
    wrong = np.array(WRONG, np.float32) * (0.8 + 0.2 * luminance)
    return np.where((row.prediction != row.truth)[..., None], wrong, right).astype(np.uint8)


def _hatched(pixels: UInt8[Array, "H W 3"], where: Bool[Array, "H W"], size: tuple[int, int]) -> Image.Image:
    """The picture at its size on the sheet, hatched there: lines of one width, however large the image is."""
    picture = resized(pixels, size)
    if not where.any():
        return picture
    place = Image.fromarray(where).resize((size[1], size[0]), Image.Resampling.NEAREST)
    finished = np.array(picture)
    hatch(finished, np.asarray(place))
    return Image.fromarray(finished)


def _captions(
    canvas: Image.Image, top: int, lefts: Sequence[int], column: int, row: SheetRow, ignore_index: int | None
) -> None:
    labelled = ~ignored(row.truth, ignore_index)
    wrong = int((labelled & (row.prediction != row.truth)).sum()) / max(1, int(labelled.sum()))
    write(canvas, (lefts[0], top), row.name, _TEXT, width=2 * column)
    write(canvas, (lefts[2], top), f"mIoU {100 * row.score:.1f} %", _TEXT, width=column)
    write(canvas, (lefts[3], top), f"{100 * wrong:.1f} % wrong", _TEXT, width=column)


def _entries(
    rows: Sequence[SheetRow], classes: Sequence[str], colours: Sequence[Colour], ignore_index: int | None
) -> list[Entry]:
    occurring = sorted(
        {int(label) for row in rows for mask in (row.truth, row.prediction) for label in np.unique(mask)}
    )
    entries = [Entry(classes[label], colours[label]) for label in occurring if label != ignore_index]
    entries += [Entry("wrong", WRONG), Entry("right", RIGHT)]
    return [*entries, Entry("not labelled", None)] if ignore_index in occurring else entries
