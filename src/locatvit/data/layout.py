"""The one layout of images with masks, which ``SegmentationFolder`` reads and the preparation writes. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from locatvit.errors import LocAtError

LAYOUT = (
    "images/{train,val}/NAME.jpg, annotations/{train,val}/NAME.png (8-bit, pixel = class, 255 = ignore) "
    "and classes.txt (a name a line)"
)
CLASSES_FILE = "classes.txt"
RECORD_FILE = "dataset.json"
"""Written last by the preparation: what the folder holds."""
LAYOUT_VERSION = 1


def read_classes(root: Path) -> tuple[str, ...]:
    """The class names of ``root/classes.txt``; line number = class number.

    Raises:
        LocAtError: no such file, an empty line between names, or a name twice.
    """
    path = root / CLASSES_FILE
    if not path.is_file():
        raise LocAtError(f"no file {path}; expected under {root}: {LAYOUT}")
    names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    if not names:
        raise LocAtError(f"{path} is empty; it must have one class name a line")
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = f"the name {name!r} a second time" if name else "no name"
            raise LocAtError(f"{path} has {fault} in line {number + 1}; the line number is the class, one name a line")
    return tuple(names)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the preparation wrote down; None for a folder in the layout that something else made.

    Raises:
        LocAtError: the file is spoiled.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LocAtError(f"{path} is no JSON ({error}); remove it and prepare the data set again") from error
    if not isinstance(record, dict):
        raise LocAtError(f"{path} holds no record of a data set; remove it and prepare the data set again")
    return record
