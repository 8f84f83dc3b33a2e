"""Images for the tests, and the way to real ones."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locatvit.errors import LocAtError

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


def error_of(loader: Iterable[object]) -> LocAtError:
    """The error that reading raises.

    Its traceback holds torch's iterator, in a cycle. Left to the garbage collector, that would wait seconds
    for each worker, so let go of it here.
    """
    with pytest.raises(LocAtError) as caught:
        list(loader)
    traceback.clear_frames(caught.tb)
    return caught.value
