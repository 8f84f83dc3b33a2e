"""Look at a segmentation data set: numbers as tables and JSON, and a sheet of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from locatvit.data import ImageDataset, Split, open_dataset
from locatvit.data.inspection import Inspection, inspect_split, spread
from locatvit.data.prepare.convert import default_workers
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import SPLITS, DataSpec
from locatvit.errors import LocAtError
from locatvit.recipes.data_config import InspectConfig
from locatvit.recipes.data_progress import progress
from locatvit.report.contact_sheet import ContactCell, write_contact_sheet
from locatvit.report.tables import NONE, Table
from locatvit.storage import write_json

_MOST_NAMED = 5


@dataclass(frozen=True)
class Inspected:
    """What was found.

    Attributes:
        config: what was looked at.
        spec: classes and colours.
        splits: the statistics of each.
        files: what was written: sheet and JSON; none without an output.
    """

    config: InspectConfig
    spec: DataSpec
    splits: dict[Split, Inspection]
    files: tuple[Path, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """A line for each file that cannot be read or breaks a rule."""
        return tuple(line for found in self.splits.values() for line in (*found.unreadable, *found.faulty))

    def as_data(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "name": self.spec.name,
            "root": None if self.config.data.root is None else str(self.config.data.root),
            "classes": list(self.spec.classes),
            "colours": [list(colour) for colour in self.spec.colours],
            "ignore_index": self.spec.ignore_index,
            "splits": {split: _split_data(found, self.spec) for split, found in self.splits.items()},
        }


def inspect_data(config: InspectConfig) -> Inspected:
    """Read the splits, sum up, and write sheet and JSON where an output is given.

    Raises:
        LocAtError: the data set cannot be opened, or not one image of it can be read.
    """
    chosen = SPLITS if config.split == "both" else (config.split,)
    datasets: dict[Split, ImageDataset] = {split: _open(config, split) for split in chosen}
    num_workers = default_workers() if config.num_workers is None else config.num_workers
    splits: dict[Split, Inspection] = {}
    for split, dataset in datasets.items():
        with progress(f"reading {config.data.name}, {split}") as on_progress:
            indices = spread(len(dataset), config.max_images)
            splits[split] = inspect_split(dataset, indices, num_workers=num_workers, on_progress=on_progress)
    spec = next(iter(datasets.values())).spec
    found = Inspected(config, spec, splits, ())
    if not any(each.num_read for each in splits.values()):
        raise LocAtError(f"not one image of {config.data.name} can be used; the first: {found.faults[0]}")
    if config.output is None:
        return found
    sheet = _write_sheet(found, datasets, config.output)
    numbers = config.output.with_suffix(".json")
    write_json(numbers, found.as_data())
    return Inspected(config, spec, splits, (sheet, numbers))


def split_table(found: Inspected) -> Table:
    """A row a fact, a column a split."""
    splits = found.splits.values()
    rows: list[tuple[str, ...]] = [
        ("images", *(f"{each.num_images:,}" for each in splits)),
        ("read, in order", *(f"{each.num_read:,}" for each in splits)),
        ("unreadable", *(f"{len(each.unreadable):,}" for each in splits)),
        ("breaking a rule", *(f"{len(each.faulty):,}" for each in splits)),
        ("most frequent size", *(_frequent(each) for each in splits)),
        ("smallest height, width", *(_size(each.quantile_size(0)) for each in splits)),
        ("median height, width", *(_size(each.quantile_size(0.5)) for each in splits)),
        ("largest height, width", *(_size(each.quantile_size(1)) for each in splits)),
        ("mean R, G, B", *(_channels(each.mean) for each in splits)),
        ("std R, G, B", *(_channels(each.std) for each in splits)),
        ("pixels without a class, %", *(_percent(each.ignored_share) for each in splits)),
    ]
    return Table(("", *found.splits), tuple(rows), caption=f"{found.spec.name}, {found.spec.num_classes} classes.")


def class_table(found: Inspected) -> Table:
    """A row a class: its share of all pixels, and the images in which it shows."""
    columns = [f"{split} {what}" for split in found.splits for what in ("pixels, %", "images")]
    rows = []
    for number, name in enumerate(found.spec.classes):
        cells = []
        for each in found.splits.values():
            cells += [_percent(each.class_shares[number]), f"{each.class_images[number]:,}"]
        rows.append((str(number), name, *cells))
    return Table(("", "class", *columns), tuple(rows), text_columns=2)


def notes(found: Inspected) -> list[str]:
    """What a reader should know: files that are wrong, classes that never show, signs of a wrong map."""
    lines = list(found.faults[:_MOST_NAMED])
    if len(found.faults) > _MOST_NAMED:
        lines.append(f"... and {len(found.faults) - _MOST_NAMED} more, see the JSON of --output")
    known = SETS.get(found.spec.name)
    for split, each in found.splits.items():
        absent = [name for name, pixels in zip(found.spec.classes, each.class_pixels, strict=True) if not pixels]
        if absent and each.num_read:
            more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
            lines.append(f"{split} shows no pixel of {len(absent)} classes: {', '.join(absent[:_MOST_NAMED])}{more}")
        if known is not None and each.num_read and each.ignored_pixels == 0:
            lines.append(
                f"{split} has no pixel of {found.spec.ignore_index}, though {known.title} has pixels without a class: "
                f"if these masks were not made by locatvit data prepare {known.name}, they may be off by one"
            )
    return lines


def _open(config: InspectConfig, split: Split) -> ImageDataset:
    data = config.data
    options = data.train_options if split == "train" else data.val_options
    return open_dataset(data.name, task="segmentation", split=split, root=data.root, **options)


def _write_sheet(found: Inspected, datasets: dict[Split, ImageDataset], path: Path) -> Path:
    cells: list[ContactCell] = []
    left = found.config.images
    for place, (split, dataset) in enumerate(datasets.items()):
        share = left // (len(datasets) - place)
        cells += _cells(split, dataset, share)
        left = found.config.images - len(cells)
    pixels = sum(each.num_pixels for each in found.splits.values())
    by_class = np.sum([each.class_pixels for each in found.splits.values()], axis=0).tolist()
    values = {number: f"{_percent(count / pixels)} %" for number, count in enumerate(by_class)}
    ignored = sum(each.ignored_pixels for each in found.splits.values())
    if found.spec.ignore_index is not None:
        values[found.spec.ignore_index] = f"{_percent(ignored / pixels)} %"
    counts = ", ".join(f"{each.num_images:,} {split}" for split, each in found.splits.items())
    known = SETS.get(found.spec.name)
    title = found.spec.name if known is None else known.title
    note = f"{counts} images, {found.spec.num_classes} classes. Percentages: of all pixels of the set."
    return write_contact_sheet(
        path, cells, found.spec.classes, found.spec.colours, title, note, values, found.spec.ignore_index
    )


def _cells(split: Split, dataset: ImageDataset, count: int) -> list[ContactCell]:
    """Images that can be read, evenly spread; for one that cannot, the next."""
    cells = []
    for start in spread(len(dataset), count):
        for index in range(start, len(dataset)):
            try:
                image, mask = dataset[index]
            except LocAtError:  # the tables name it
                continue
            name = f"{split}: {Path(dataset.describe(index)).stem}"
            cells.append(ContactCell(name, np.asarray(image), mask.numpy()))
            break
    return cells


def _split_data(found: Inspection, spec: DataSpec) -> dict[str, Any]:
    data = asdict(found)
    data["sizes"] = [{"height": size[0], "width": size[1], "images": count} for size, count in found.sizes]
    data["class_pixels"] = dict(zip(spec.classes, found.class_pixels, strict=True))
    data["class_images"] = dict(zip(spec.classes, found.class_images, strict=True))
    data["class_shares"] = dict(zip(spec.classes, found.class_shares, strict=True))
    return data | {"ignored_share": found.ignored_share}


def _frequent(found: Inspection) -> str:
    if not found.sizes:
        return NONE
    size, count = found.sizes[0]
    return f"{_size(size)}: {count:,}"


def _size(size: Sequence[int] | None) -> str:
    return NONE if size is None else f"{size[0]} x {size[1]}"


def _channels(values: Sequence[float] | None) -> str:
    return NONE if values is None else ", ".join(f"{value:.3f}" for value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
