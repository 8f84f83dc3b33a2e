"""Images for the tests, and the way to real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


def real_data(name: str) -> Path:
    """The folder of a real data set beside the checkout; skips the test where it is missing."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


def plain_image(value: int, size: tuple[int, int] = (6, 8)) -> Image.Image:
    """A grey image of (height, width)."""
    return Image.fromarray(np.full((*size, 3), value, dtype=np.uint8))


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
