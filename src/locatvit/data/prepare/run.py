"""The preparation itself: plan, compare with the official counts, convert what is not there yet, record."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from locatvit.data.layout import CLASSES_FILE, LAYOUT_VERSION, RECORD_FILE, read_record
from locatvit.data.prepare import CONVERTERS
from locatvit.data.prepare.convert import convert_all, default_workers, is_done
from locatvit.data.prepare.plan import Plan, PrepareOptions
from locatvit.data.spec import IGNORE_INDEX, SPLITS, Split, voc_colours
from locatvit.errors import LocAtError, near_matches
from locatvit.storage import write_json, write_text

_MOST_NAMED = 3
_WORTH_PROCESSES = 1000


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to.

    Attributes:
        name: of the data set.
        folder: the prepared one; None where a folder in the layout was only checked.
        counts: split to images.
        expected: split to the official count; empty where none is known.
        converted: images that were converted, or checked, now.
        missing: what the official download has and is not there.
        seconds: that it took.
    """

    name: str
    folder: Path | None
    counts: Mapping[Split, int]
    expected: Mapping[Split, int]
    converted: int
    missing: tuple[str, ...]
    seconds: float


def prepare(
    name: str,
    options: PrepareOptions,
    output: Path | None = None,
    *,
    partial: bool = False,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Turn an official download into the layout that the loader reads. The official files stay as they are.

    It can be stopped at any moment and started again: what is done stays, whole, and is not done again.

    Args:
        name: one of ``CONVERTERS``.
        options: the official folder, and what else the converter may be told.
        output: the prepared folder; None for ``locatvit_NAME`` in the official one (a folder that is in the layout
            already is then only checked).
        partial: go on with fewer images than the data set officially has.
        num_workers: processes that convert; 0 converts in this one. None for one a core, 8 at most, and none for a
            small data set.
        on_progress: called with images done and images to do.

    Raises:
        LocAtError: an unknown name; files that are missing, with the official page; labels that the data set does
            not have; a folder that holds something else.
    """
    start = time.monotonic()
    plan = make_plan(name, options)
    check_counts(plan, options.root, partial=partial)
    folder = _output_folder(plan, options.root, output)
    if folder is not None:
        _check_output(folder, plan)
    todo = [item for item in plan.items if folder is None or not is_done(item, folder)]
    if folder is not None and todo:
        for name_ in (RECORD_FILE, CLASSES_FILE):  # without them it cannot be opened before it is whole again
            (folder / name_).unlink(missing_ok=True)
    if num_workers is None:
        num_workers = default_workers() if len(todo) >= _WORTH_PROCESSES else 0
    convert_all(plan, todo, folder, num_workers, on_progress)
    counts = {split: plan.count(split) for split in SPLITS}
    if folder is not None:
        _conclude(folder, plan, options, counts)
    return Prepared(plan.name, folder, counts, plan.expected, len(todo), plan.missing, time.monotonic() - start)


def make_plan(name: str, options: PrepareOptions) -> Plan:
    """Find out what is there; writes nothing.

    Raises:
        LocAtError: an unknown name, or not the official layout.
    """
    if name not in CONVERTERS:
        raise LocAtError(f"unknown data set {name!r}; {near_matches(name, CONVERTERS)}")
    if options.train_list != "train" and name != "voc2012":
        raise LocAtError(f"train_list is {options.train_list!r}, a list of voc2012; {name} has none, leave it out")
    if options.sbd is not None and options.train_list != "trainaug":
        raise LocAtError(f"sbd is {options.sbd}, which serves voc2012 with train_list trainaug alone; leave it out")
    return importlib.import_module(f"{__package__}.{name}").plan(options)


def check_counts(plan: Plan, root: Path, *, partial: bool) -> None:
    """Compare with the official counts.

    Raises:
        LocAtError: files are missing, or there are other numbers of images, and ``partial`` is not given; or
            there is no image at all.
    """
    counts = {split: plan.count(split) for split in SPLITS}
    differing = [split for split, count in plan.expected.items() if counts[split] != count]
    if (not differing and not plan.missing) or (partial and plan.items):
        return
    there = ", ".join(
        f"{counts[split]} of {plan.expected[split]} {split} images" if split in plan.expected
        else f"{counts[split]} {split} images with masks"
        for split in SPLITS
    )  # fmt: skip
    lacking = f"; missing: {_shortened(plan.missing)}" if plan.missing else ""
    source = f". Official download: {plan.known.page} ({plan.known.layout})" if plan.known is not None else ""
    remedy = "; give --partial to go on with those that are there" if plan.items else ""
    raise LocAtError(f"{plan.name} in {root}: {there}{lacking}{source}{remedy}")


def _shortened(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _output_folder(plan: Plan, root: Path, output: Path | None) -> Path | None:
    if output is None:
        return None if plan.in_place else root / f"locatvit_{plan.name}"
    if output.resolve() == root.resolve():
        raise LocAtError(f"output is {output}, the official folder itself; give another one, or leave it out")
    return output


def _check_output(folder: Path, plan: Plan) -> None:
    """Refuse a folder with another data set, or another part of this one, in it."""
    record = read_record(folder)
    if record is not None and record.get("name") != plan.name:
        raise LocAtError(f"{folder} holds the data set {record.get('name')!r}; choose another --output")
    names = {(item.split, item.name) for item in plan.items}
    for kind in ("images", "annotations"):
        for split in SPLITS:
            place = folder / kind / split
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if not path.name.startswith(".") and (split, path.stem) not in names:
                    raise LocAtError(
                        f"{path} is none of the {len(names)} images of {plan.name} that are to be prepared; choose "
                        "another --output, or remove that folder"
                    )


def _conclude(folder: Path, plan: Plan, options: PrepareOptions, counts: Mapping[Split, int]) -> None:
    for kind in ("images", "annotations"):
        for split in SPLITS:
            for path in (folder / kind / split).glob(".*.tmp"):  # of a preparation that was killed
                path.unlink(missing_ok=True)
    for name, names in (plan.lists or {}).items():
        write_text(folder / f"{name}.txt", "".join(f"{each}\n" for each in names))
    palette = voc_colours(len(plan.classes)) if plan.known is None else plan.known.palette
    record = {
        "layout": LAYOUT_VERSION,
        "name": plan.name,
        "title": plan.name if plan.known is None else plan.known.title,
        "source": str(options.root.resolve()),
        "page": None if plan.known is None else plan.known.page,
        "citation": None if plan.known is None else plan.known.citation,
        "classes": list(plan.classes),
        "colours": [list(colour) for colour in palette],
        "ignore_index": IGNORE_INDEX,
        "images": dict(counts),
        "official_images": dict(plan.expected),
        "partial": bool(plan.missing) or any(counts[split] != count for split, count in plan.expected.items()),
        **(plan.record or {}),
    }
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in plan.classes))
    write_json(folder / RECORD_FILE, record)
