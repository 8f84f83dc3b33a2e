"""Photos as cameras leave them, and masks as 8-bit PNG files that show their classes in colours."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from locatvit.data.decoding import IMAGE_EXTENSIONS, UnreadableImage, image_size, read_image
from locatvit.data.spec import Colour
from locatvit.errors import LocAtError
from locatvit.storage import atomic_write

# the text chunk of a mask that tells what made it
_STAMP = "locatvit"
_UNLABELLED = (224, 224, 224)


def find_photos(places: Sequence[Path]) -> dict[Path, str]:
    """All photos of folders, with those below them, and of files: path to name, sorted place by place.

    The name is the path below the folder, or the file's own name. Files and folders that begin with a dot are left out,
    and a photo that is met twice counts once.

    Raises:
        LocAtError: a place that does not exist, a file that is no image by its ending, or a folder without images.
    """
    found: dict[Path, str] = {}
    for place in places:
        known = {path.resolve() for path in found}
        here = _photos_below(place) if not place.is_file() else {place: place.name}
        found.update((path, name) for path, name in here.items() if path.resolve() not in known)
    wrong = [path for path in found if path.suffix.lower() not in IMAGE_EXTENSIONS]
    if wrong:
        raise LocAtError(f"{wrong[0]} is no image by its ending; the endings are {', '.join(IMAGE_EXTENSIONS)}")
    return found


def _photos_below(folder: Path) -> dict[Path, str]:
    if not folder.is_dir():
        raise LocAtError(f"there is no file or folder {folder}; give photos, or a folder of photos")
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob("*"))}
    found = {
        path: name.as_posix()
        for path, name in names.items()
        if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file() and not any(p[0] == "." for p in name.parts)
    }
    if not found:
        raise LocAtError(f"{folder} holds no images; the endings are {', '.join(IMAGE_EXTENSIONS)}")
    return found


def read_photo(path: Path, max_megapixels: float) -> Image.Image:
    """A photo in RGB, upright: turned as its EXIF orientation says. Transparency is dropped, as in training.

    Args:
        path: the file.
        max_megapixels: millions of pixels that are read at most; what is larger is not decoded.

    Raises:
        UnreadableImage: a file that cannot be decoded, is larger, or whose EXIF data are broken.
    """
    _check_pixels(path, max_megapixels)
    image = read_image(path, str(path))
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"image {path} has broken EXIF data ({reason}); save it anew without them") from error


def _check_pixels(path: Path, max_megapixels: float) -> None:
    with warnings.catch_warnings():
        # ours is the limit that counts; PIL warns of images beyond its own
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        height, width = image_size(path)
    if width * height > max_megapixels * 1e6:
        raise UnreadableImage(
            f"image {path} has {width} x {height} pixels, more than max_megapixels {max_megapixels:g}; make it "
            "smaller, or raise max_megapixels"
        )


def write_mask(path: Path, mask: Integer[np.ndarray, "H W"], colours: Sequence[Colour], stamp: dict[str, Any]) -> None:
    """Write classes as an 8-bit PNG of palette colours: pixel = class, also where viewers show colours.

    Args:
        path: the file.
        mask: classes, 0 to 254.
        colours: one a class.
        stamp: what ``read_stamp`` is to find, plain data.

    Raises:
        LocAtError: the file cannot be written.
    """
    image = Image.fromarray(mask.astype(np.uint8))
    # all 256 entries: with fewer the file would have fewer bits a pixel
    flat = [channel for colour in colours for channel in colour]
    image.putpalette(flat + list(_UNLABELLED) * (256 - len(colours)))
    text = PngInfo()
    text.add_text(_STAMP, json.dumps(stamp))
    atomic_write(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=text))


def read_stamp(path: Path) -> dict[str, Any] | None:
    """The stamp of a mask; None for a file that ``write_mask`` has not written."""
    try:
        with Image.open(path) as image:
            stamp = json.loads(image.info.get(_STAMP, "null"))
    except (OSError, SyntaxError, ValueError, struct.error, TypeError):
        return None
    return stamp if isinstance(stamp, dict) else None
