"""Data sets, their transforms and the loader.

``open_dataset`` opens by name, ``make_loader`` (in ``loader``) makes batches of it. A new data set is a file
here and one line in ``DATASETS``. Importing this package loads neither torch nor timm.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from locatvit.data.spec import SPLITS, TASKS, DataSpec, ImageDataset, Split, Task
from locatvit.errors import LocAtError, near_matches

__all__ = ["DATASETS", "TIMM_PREFIXES", "DataSpec", "ImageDataset", "Split", "Task", "open_dataset"]

DATASETS: dict[str, dict[str, str]] = {
    "cifar100": {"classification": "cifar100:open_cifar100"},
    "ade20k": {"segmentation": "named_sets:ADE20K"},
    "pascal_context": {"segmentation": "named_sets:PascalContext"},
    "coco_stuff": {"segmentation": "named_sets:CocoStuff"},
    "coco_stuff_10k": {"segmentation": "named_sets:CocoStuff10k"},
    "voc2012": {"segmentation": "named_sets:VOC2012"},
    "cityscapes": {"segmentation": "named_sets:Cityscapes"},
    "camvid": {"segmentation": "camvid:CamVid"},
    "folder": {
        "classification": "folder:ImageFolder",
        "segmentation": "segmentation_folder:SegmentationFolder",
    },
    "scenes": {"classification": "scenes:SceneLabels", "segmentation": "scenes:SceneMasks"},
}
"""The only list: name of a data set to, for each task that it serves, its module and opener."""

TIMM_PREFIXES = ("hfds", "wds", "torch", "tfds")
"""What stands before the slash in a name that ``timm.data.create_dataset`` reads, e.g. ``hfds/cifar100``."""


def open_dataset(
    name: str,
    *,
    task: Task,
    split: Split,
    root: str | Path | None = None,
    transform: Callable[..., Any] | None = None,
    **options: Any,
) -> ImageDataset:
    """Open one split of a data set.

    Args:
        name: a key of ``DATASETS``, or a name with one of timm's prefixes (``hfds/``, ``wds/``, ``torch/``,
            ``tfds/``), which serve classification.
        task: ``"classification"`` or ``"segmentation"``; it decides what an item is (see ``ImageDataset``).
        split: ``"train"`` or ``"val"``.
        root: folder of the data; ``scenes`` has none.
        transform: from ``locatvit.data.transforms``; None leaves PIL images.
        options: the data set's own, e.g. ``download=True`` for cifar100, ``num_images`` for scenes.

    Raises:
        LocAtError: unknown name, task, split or option; files that are missing or not in the layout.
    """
    if task not in TASKS:
        raise LocAtError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise LocAtError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    folder = None if root is None else Path(root).expanduser()
    if name.partition("/")[0] in TIMM_PREFIXES and "/" in name:
        return _open_timm(name, task=task, split=split, root=folder, transform=transform, **options)
    opener = _load(_find(name, task))
    _check_options(name, opener, options)
    return opener(split=split, root=folder, transform=transform, **options)


def _find(name: str, task: Task) -> str:
    """``module:opener`` of a data set for a task."""
    if name not in DATASETS:
        prefixes = ", ".join(f"{prefix}/NAME" for prefix in TIMM_PREFIXES)
        raise LocAtError(f"unknown data set {name!r}; {near_matches(name, DATASETS)} Or one of timm's: {prefixes}")
    if task not in DATASETS[name]:
        serves = " and ".join(DATASETS[name])
        able = ", ".join(known for known, tasks in DATASETS.items() if task in tasks)
        raise LocAtError(f"data set {name!r} serves {serves}, not {task}; data sets for {task}: {able}")
    return DATASETS[name][task]


def _open_timm(name: str, *, task: Task, **arguments: Any) -> ImageDataset:
    if task != "classification":
        raise LocAtError(f"data set {name!r} is timm's and serves classification, not {task}; use 'folder' for masks")
    return _load("timm_data:open_timm")(name, **arguments)


def _load(address: str) -> Callable[..., ImageDataset]:
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def _check_options(name: str, opener: Callable[..., Any], options: dict[str, Any]) -> None:
    known = sorted(set(inspect.signature(opener).parameters) - {"split", "root", "transform"})
    for option in options:
        if option not in known:
            raise LocAtError(
                f"data set {name!r} has no option {option!r}; "
                + (near_matches(option, known) if known else "it has none")
            )
