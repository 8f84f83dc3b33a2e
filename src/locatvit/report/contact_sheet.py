"""A sheet of images beside their masks in colours, with a legend of the classes that show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from locatvit.errors import LocAtError
from locatvit.report.drawables import check_colours, check_image, check_mask
from locatvit.report.lettering import PAPER, SOFT, Array, Colour, Entry, hatch, legend, line_height, write
from locatvit.report.sheets import ignored, resized, shown_size
from locatvit.storage import atomic_write

# in pixels: the width that the columns share, spaces (within a pair, between pairs, around), and letters
_WIDTH, _SEAM, _GAP, _MARGIN = 1968, 4, 24, 32
_TITLE, _NOTE, _TEXT, _LEGEND = 32, 20, 17, 20
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class ContactCell:
    """One image of a sheet.

    Attributes:
        name: what stands below it, e.g. the file's name.
        image: the image.
        mask: class of every pixel, or the ignored label.
    """

    name: str
    image: UInt8[Array, "H W 3"]
    mask: Integer[Array, "H W"]


def write_contact_sheet(
    path: Path,
    cells: Sequence[ContactCell],
    classes: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    note: str = "",
    values: Mapping[int, str] | None = None,
    ignore_index: int | None = 255,
) -> Path:
    """Draw the cells (``draw_contact_sheet``), write them as a PNG and return its path.

    Raises:
        LocAtError: an argument that ``draw_contact_sheet`` refuses, another ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise LocAtError(f"a contact sheet's file is {path.name}; it must end in .png")
    sheet = draw_contact_sheet(cells, classes, colours, title, note, values, ignore_index)
    atomic_write(path, lambda temporary: sheet.save(temporary, format="PNG", optimize=True))
    return path


def draw_contact_sheet(
    cells: Sequence[ContactCell],
    classes: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    note: str = "",
    values: Mapping[int, str] | None = None,
    ignore_index: int | None = 255,
) -> Image.Image:
    """Pairs of image and mask in up to four columns; what has no label is hatched.

    Args:
        cells: one or more.
        classes: names; the place is the label.
        colours: one a class.
        title: the sheet's heading.
        note: a line below it.
        values: label to a text behind its name in the legend, e.g. its share.
        ignore_index: label of the pixels that do not count, None if all do.

    Raises:
        LocAtError: no cells; not as many colours as classes; a mask that is not as large as its image, or a label
            without a name.
    """
    _check(cells, classes, colours, ignore_index)
    columns = min(_MOST_COLUMNS, max(1, round(len(cells) ** 0.5)))
    side = (_WIDTH - (columns - 1) * _GAP - columns * _SEAM) // (2 * columns)
    palette = np.array(colours, np.uint8)
    pairs = [_pair(cell, palette, side, ignore_index) for cell in cells]
    pair = max(picture.width for picture in pairs)
    width = max(columns * pair + (columns - 1) * _GAP, _WIDTH // 2)
    lines = [range(start, min(start + columns, len(pairs))) for start in range(0, len(pairs), columns)]
    heights = [max(pairs[index].height for index in line) + line_height(_TEXT) + _GAP // 2 for line in lines]
    key = legend(_entries(cells, classes, colours, values or {}, ignore_index), width, _LEGEND)
    head = line_height(_TITLE) + (line_height(_NOTE) if note else 0) + _GAP // 2
    canvas = Image.new("RGB", (width + 2 * _MARGIN, head + sum(heights) + _GAP + key.height + 2 * _MARGIN), PAPER)
    write(canvas, (_MARGIN, _MARGIN), title, _TITLE, width=width, bold=True)
    if note:
        write(canvas, (_MARGIN, _MARGIN + line_height(_TITLE)), note, _NOTE, width=width, colour=SOFT)
    top = _MARGIN + head
    for line, height in zip(lines, heights, strict=True):
        for column, index in enumerate(line):
            left = _MARGIN + column * (pair + _GAP)
            canvas.paste(pairs[index], (left, top))
            below = top + pairs[index].height + 4
            write(canvas, (left, below), cells[index].name, _TEXT, width=pair, colour=SOFT)
        top += height
    canvas.paste(key, (_MARGIN, top + _GAP))
    return canvas


def _check(
    cells: Sequence[ContactCell], classes: Sequence[str], colours: Sequence[Colour], ignore_index: int | None
) -> None:
    if not cells:
        raise LocAtError("cells is empty; a contact sheet needs one image or more")
    check_colours(colours, classes)
    for cell in cells:
        size = check_image(cell.image, f"image {cell.name}")
        check_mask(
            cell.mask, f"the mask of {cell.name}", size, len(classes), -1 if ignore_index is None else ignore_index
        )


def _pair(cell: ContactCell, palette: UInt8[Array, "C 3"], side: int, ignore_index: int | None) -> Image.Image:
    """Image and mask side by side, each within ``side`` pixels."""
    height, width = cell.mask.shape
    size = shown_size(height, width, side)
    without = ignored(cell.mask, ignore_index)
    painted = palette[np.clip(cell.mask, 0, len(palette) - 1)]
    # the nearest pixel's colour: a mean of two classes' colours may be that of a third
    shown = np.array(Image.fromarray(painted).resize((size[1], size[0]), Image.Resampling.NEAREST))
    hatch(shown, np.asarray(Image.fromarray(without).resize((size[1], size[0]), Image.Resampling.NEAREST)))
    pair = Image.new("RGB", (2 * size[1] + _SEAM, size[0]), PAPER)
    pair.paste(resized(cell.image, size), (0, 0))
    pair.paste(Image.fromarray(shown), (size[1] + _SEAM, 0))
    return pair


def _entries(
    cells: Sequence[ContactCell],
    classes: Sequence[str],
    colours: Sequence[Colour],
    values: Mapping[int, str],
    ignore_index: int | None,
) -> list[Entry]:
    showing = sorted({int(label) for cell in cells for label in np.unique(cell.mask)})
    entries = [
        Entry(classes[label], colours[label], values.get(label, "")) for label in showing if label != ignore_index
    ]
    if ignore_index in showing:
        entries.append(Entry("not labelled", None, values.get(ignore_index, "")))
    return entries
