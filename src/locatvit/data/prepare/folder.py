"""A folder in the prepared layout already: every image and mask is checked and counted."""

from __future__ import annotations

from pathlib import Path

from locatvit.data.decoding import IMAGE_EXTENSIONS, decode_mask
from locatvit.data.layout import LAYOUT, read_classes
from locatvit.data.prepare.plan import Plan, PrepareOptions, pair, scan
from locatvit.data.spec import IGNORE_INDEX, SPLITS
from locatvit.errors import LocAtError


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``; whatever count is there is right."""
    classes = read_classes(options.root)
    missing: list[str] = []
    items = []
    for split in SPLITS:
        images = _images(options.root / "images" / split, missing)
        items += pair(split, images, scan(options.root / "annotations" / split, (".png",), missing), missing)
    if not items:
        raise LocAtError(f"{options.root} holds no image with a mask; expected {LAYOUT}")
    train_ids = {number: number for number in (*range(len(classes)), IGNORE_INDEX)}
    return Plan("folder", classes, tuple(items), decode_mask, train_ids, {}, missing=tuple(missing), in_place=True)


def _images(folder: Path, missing: list[str]) -> dict[str, Path]:
    upper = tuple(suffix.upper() for suffix in IMAGE_EXTENSIONS)
    return scan(folder, (*IMAGE_EXTENSIONS, *upper), missing)
