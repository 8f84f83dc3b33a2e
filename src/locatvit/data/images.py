"""Decoding of images and masks: all of PIL's ways to fail become one error that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from locatvit.data.spec import DataSpec
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


def read_mask(path: Path, spec: DataSpec) -> Int64[Tensor, "H W"]:
    """Decode a mask: 8 bits, one channel, pixel = class (of a palette image the index).

    Raises:
        UnreadableImage: the file cannot be decoded.
        LocAtError: several channels, 16 bits, or a value that is neither a class nor ``spec.ignore_index``.
    """
    image = _decode(path, str(path))
    if image.mode not in _MASK_MODES:
        raise LocAtError(f"mask {path} has mode {image.mode}; it must be 8-bit with one channel (L or P): the class")
    mask = np.array(image, dtype=np.uint8)
    wrong = np.setdiff1d(np.unique(mask), [*range(spec.num_classes), spec.ignore_index])
    if len(wrong):
        raise LocAtError(
            f"mask {path} has the value {wrong[0]}; classes are 0 to {spec.num_classes - 1}, and "
            f"{spec.ignore_index} is ignored. Mend the mask or add the class to classes.txt"
        )
    return torch.from_numpy(mask).long()


def _decode(source: Path | BinaryIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"image {name} cannot be read: {reason}") from error
