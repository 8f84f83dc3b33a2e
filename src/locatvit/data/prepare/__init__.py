"""Official downloads to the one layout that the loader reads: one file a converter. No torch.

``prepare`` (in ``run``) does it. A new benchmark is its facts in ``segmentation_sets``, a file here with
``plan(options)`` and one line in ``CONVERTERS``.
"""

from __future__ import annotations

CONVERTERS = (
    "ade20k", "pascal_context", "coco_stuff", "coco_stuff_10k", "voc2012", "cityscapes", "camvid", "folder",
)  # fmt: skip
"""The only list: names of data sets, each that of the module of this package that plans its preparation."""

MAX_WORKERS = 64
"""The most worker processes that a preparation may have."""
