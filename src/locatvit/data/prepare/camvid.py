"""CamVid: SegNet's folders, whose 11 (unlabelled) becomes 255, or the prepared layout, which is checked."""

from __future__ import annotations

from dataclasses import replace

from locatvit.data.decoding import decode_mask
from locatvit.data.prepare import folder
from locatvit.data.prepare.plan import Plan, PrepareOptions, base_folder, pair, scan
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import SPLITS
from locatvit.errors import LocAtError


def plan(options: PrepareOptions) -> Plan:
    """See ``Plan``."""
    known = SETS["camvid"]
    if (options.root / "classes.txt").is_file():
        found = folder.plan(options)
        if found.classes != known.classes:
            raise LocAtError(
                f"{options.root}/classes.txt has {len(found.classes)} classes ({found.classes[0]}, ...), not CamVid's "
                f"{len(known.classes)} ({known.classes[0]}, ...); prepare it as 'folder'"
            )
        return replace(found, name=known.name, known=known, expected=known.num_images)
    base = base_folder(options.root, known, (".", "CamVid"), "trainannot", "valannot")
    missing: list[str] = []
    items = []
    for split in SPLITS:
        images = scan(base / split, (".png",), missing)
        items += pair(split, images, scan(base / f"{split}annot", (".png",), missing), missing)
    return Plan(
        known.name, known.classes, tuple(items), decode_mask, known.train_ids, known.num_images,
        missing=tuple(missing), known=known,
    )  # fmt: skip
