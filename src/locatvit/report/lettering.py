"""Words, chips and legends for pictures that are put together pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray
Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255 each."""

INK: Colour = (0x22, 0x26, 0x2B)
SOFT: Colour = (0x5F, 0x67, 0x72)
PAPER: Colour = (255, 255, 255)
HATCH_GROUND: Colour = (0xEC, 0xEE, 0xF0)
HATCH_LINE: Colour = (0xA7, 0xAE, 0xB7)
"""What has no label is hatched: no class can have that colour."""

_HATCH_STEP, _HATCH_LINE_WIDTH = 9, 3
_ELLIPSIS = "…"
_FEW_LINES = 4


@dataclass(frozen=True)
class Entry:
    """A line of a legend.

    Attributes:
        name: what the colour stands for; cut in the middle where it is too long.
        colour: of the chip; None for the hatching of what has no label.
        value: a text behind the name, never cut, e.g. a share.
    """

    name: str
    colour: Colour | None
    value: str = ""


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, ``size`` pixels high: Latin, Greek and Cyrillic, the same on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def elide(text: str, width: float, size: int, *, bold: bool = False) -> str:
    """``text``, with an ellipsis in the middle where it is wider than ``width`` pixels."""
    letters = font(size, bold=bold)
    text = " ".join(text.split())
    if letters.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        # a little more of the head: file names differ at both ends
        head = (kept + 1) // 2
        shorter = text[:head].rstrip() + _ELLIPSIS + text[len(text) - (kept - head) :].lstrip()
        if letters.getlength(shorter) <= width:
            return shorter
    return _ELLIPSIS


def write(
    canvas: Image.Image, place: tuple[int, int], text: str, size: int, *, width: float, bold: bool = False,
    colour: Colour = INK,
) -> None:  # fmt: skip
    """Write one line, its upper left corner at ``place`` = (x, y), cut to ``width`` pixels."""
    shown = elide(text, width, size, bold=bold)
    ImageDraw.Draw(canvas).text(place, shown, font=font(size, bold=bold), fill=colour)


def line_height(size: int) -> int:
    """Pixels from line to line."""
    return round(1.6 * size)


def hatching(height: int, width: int) -> Bool[Array, "h w"]:
    """Where the lines of the hatching are."""
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((rows + columns) % _HATCH_STEP < _HATCH_LINE_WIDTH)


def hatch(pixels: Array, where: Bool[Array, "h w"]) -> None:
    """Hatch the pixels of a uint8 picture ``[h, w, 3]`` in place."""
    lines = hatching(*where.shape)
    pixels[where & ~lines] = HATCH_GROUND
    pixels[where & lines] = HATCH_LINE


def legend(entries: Sequence[Entry], width: int, size: int = 20) -> Image.Image:
    """Chips with names in columns, as many as fit into ``width`` pixels, read column by column.

    Args:
        entries: one or more.
        width: of the picture.
        size: of the letters, in pixels.
    """
    chip, step = round(1.1 * size), line_height(size)
    cell = _cell_width(entries, width, size, chip)
    lines = -(-len(entries) // max(1, width // cell))
    cell = min(cell, width)
    canvas = Image.new("RGB", (width, lines * step), PAPER)
    for index, entry in enumerate(entries):
        column, line = divmod(index, lines)
        _entry(canvas, (column * cell, line * step), entry, cell, size, chip)
    return canvas


def _cell_width(entries: Sequence[Entry], width: int, size: int, chip: int) -> int:
    """Room for the longest name where that takes few lines; else long names are cut, so that short ones find room."""
    texts = [" ".join(filter(None, (" ".join(entry.name.split()), entry.value))) for entry in entries]
    widest = math.ceil(max(map(font(size).getlength, texts))) + chip + 2 * size + 2
    if len(entries) <= _FEW_LINES * (width // widest):
        return widest
    return min(widest, max(width // 6, 15 * size))


def _entry(canvas: Image.Image, corner: tuple[int, int], entry: Entry, width: int, size: int, chip: int) -> None:
    x, y = corner
    pixels = np.empty((chip, chip, 3), np.uint8)
    pixels[:] = PAPER if entry.colour is None else entry.colour
    if entry.colour is None:
        hatch(pixels, np.ones((chip, chip), bool))
    top = y + (line_height(size) - chip) // 2
    canvas.paste(Image.fromarray(pixels), (x, top))
    # a rim, for the sake of white and pale classes
    ImageDraw.Draw(canvas).rectangle((x, top, x + chip - 1, top + chip - 1), outline=SOFT)
    start, room = x + chip + size // 2, width - chip - 2 * size
    behind = font(size).getlength(f" {entry.value}") if entry.value else 0.0
    name = elide(entry.name, max(room - behind, size), size)
    text_top = y + (line_height(size) - round(1.2 * size)) // 2
    draw = ImageDraw.Draw(canvas)
    draw.text((start, text_top), name, font=font(size), fill=INK)
    if entry.value:
        draw.text((start + font(size).getlength(f"{name} "), text_top), entry.value, font=font(size), fill=SOFT)
