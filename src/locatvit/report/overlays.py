"""A photo with its classes in colours over it, and a legend of their shares below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from locatvit.errors import LocAtError
from locatvit.report.drawables import check_colours, check_image, check_mask
from locatvit.report.lettering import PAPER, Array, Colour, Entry, legend
from locatvit.report.sheets import resized, shown_size
from locatvit.storage import atomic_write

OVERLAY_FORMATS = {".jpg": "JPEG", ".png": "PNG"}
"""Ending of an overlay's file to the format's name."""

# in pixels: the largest side of the photo in the picture, and the least of a small one; the least width of a legend
_LONGEST, _SMALL, _LEAST_WIDTH, _MARGIN = 2048, 512, 480, 14
_MOST_NAMED = 30


def write_overlay(
    path: Path,
    image: UInt8[Array, "H W 3"],
    mask: Integer[Array, "H W"],
    classes: Sequence[str],
    colours: Sequence[Colour],
    opacity: float = 0.5,
) -> Path:
    """Draw the overlay (``draw_overlay``), write it as its ending says, ``.jpg`` or ``.png``, and return its path.

    Raises:
        LocAtError: another ending; an argument that ``draw_overlay`` refuses; the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in OVERLAY_FORMATS:
        raise LocAtError(f"an overlay's file is {path.name}; it must end in {' or '.join(OVERLAY_FORMATS)}")
    picture = draw_overlay(image, mask, classes, colours, opacity)
    # JPEG's usual halving of the colours would wash out the borders between classes
    options = {"quality": 90, "subsampling": 0} if path.suffix == ".jpg" else {}
    atomic_write(path, lambda temporary: picture.save(temporary, format=OVERLAY_FORMATS[path.suffix], **options))
    return path


def draw_overlay(
    image: UInt8[Array, "H W 3"],
    mask: Integer[Array, "H W"],
    classes: Sequence[str],
    colours: Sequence[Colour],
    opacity: float = 0.5,
) -> Image.Image:
    """The photo under its classes' colours, their borders in full colour, the largest class first in the legend.

    A side of more than 2,048 pixels is made that long; a photo of less than 512 is enlarged by a whole number. The
    legend names the 30 largest classes.

    Args:
        image: the photo.
        mask: class of every pixel.
        classes: names; the place is the label.
        colours: one a class.
        opacity: of the colours, 0 (the photo alone) to 1 (the colours alone).

    Raises:
        LocAtError: a mask that is not as large as its image or has a label without a name, not as many colours as
            classes, or an opacity out of range.
    """
    if not 0 <= opacity <= 1:
        raise LocAtError(f"opacity is {opacity}; it must be in [0, 1]")
    check_colours(colours, classes)
    check_mask(mask, "the mask", check_image(image, "the photo"), len(classes), -1)
    # the photo's own size where that is neither small nor large
    size = shown_size(mask.shape[0], mask.shape[1], min(max(*mask.shape, _SMALL), _LONGEST))
    photo = np.asarray(resized(image, size), np.float32)
    labels = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))
    painted = np.array(colours, np.float32)[labels]
    weight = np.where(_borders(labels), max(opacity, 0.9) if opacity else 0.0, opacity)[..., None]
    blended = Image.fromarray((weight * painted + (1 - weight) * photo + 0.5).astype(np.uint8))
    width = max(blended.width, _LEAST_WIDTH)
    key = legend(_entries(mask, classes, colours), width - 2 * _MARGIN, max(16, width // 64))
    canvas = Image.new("RGB", (width, blended.height + key.height + 2 * _MARGIN), PAPER)
    canvas.paste(blended, (0, 0))
    canvas.paste(key, (_MARGIN, blended.height + _MARGIN))
    return canvas


def class_shares(mask: Integer[Array, "H W"], num_classes: int) -> list[float]:
    """The share of the pixels that each class has; together 1."""
    counts = np.bincount(mask.ravel(), minlength=num_classes)
    return [int(count) / mask.size for count in counts]


def _borders(labels: UInt8[Array, "H W"]) -> Bool[Array, "H W"]:
    """Pixels whose right or lower neighbour is of another class, and those neighbours."""
    borders = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def _entries(mask: Integer[Array, "H W"], classes: Sequence[str], colours: Sequence[Colour]) -> list[Entry]:
    shares = class_shares(mask, len(classes))
    shown = sorted((label for label, share in enumerate(shares) if share), key=lambda label: -shares[label])
    largest, rest = shown[:_MOST_NAMED], shown[_MOST_NAMED:]
    entries = [Entry(classes[label], colours[label], _percent(shares[label])) for label in largest]
    if rest:
        entries.append(Entry(f"{len(rest)} more", PAPER, _percent(sum(shares[label] for label in rest))))
    return entries


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
