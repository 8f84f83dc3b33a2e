"""Decoding of image files by PIL and numpy: all ways to fail become one error that names the file. No torch."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from locatvit.errors import LocAtError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_MASK_MODES = ("L", "P", "1")
# what PIL's decoders raise on broken bytes, by experience: not only OSError
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class UnreadableImage(LocAtError):
    """An image that cannot be decoded. ``TolerantDataset`` counts these; everything else stops the run."""


def read_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image to RGB; transparency is dropped.

    Args:
        source: a file or an open stream of bytes.
        name: how messages call it.

    Raises:
        UnreadableImage: missing, truncated, not an image, or with more than 8 bits a channel.
    """
    image = _decode(source, name)
    if image.mode[0] in "IF":
        raise UnreadableImage(f"image {name} has mode {image.mode}; it must have 8 bits a channel, convert it to RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about the direct way
    return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the head of the file alone.

    Raises:
        UnreadableImage: missing, or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _BROKEN as error:
        raise _unreadable(str(path), error) from error


def decode_mask(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The numbers in a mask of 8 bits and one channel; of a palette image the indices, not the colours.

    Raises:
        UnreadableImage: the file cannot be decoded.
        LocAtError: several channels, or 16 bits.
    """
    image = _decode(path, str(path))
    if image.mode not in _MASK_MODES:
        remedy = (
            "if no number is above 255, save it again with 8 bits"
            if image.mode[0] in "IF"
            else "turn its colours into the numbers of the classes and save them as an 8-bit grey or palette PNG"
        )
        raise LocAtError(
            f"mask {path} has mode {image.mode}; it must be 8-bit with one channel (L or P): the class; {remedy}"
        )
    return np.array(image, dtype=np.uint8)


def _decode(source: Path | BinaryIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except _BROKEN as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException) -> UnreadableImage:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImage(f"image {name} cannot be read: {reason}")
