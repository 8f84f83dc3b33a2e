"""Prepare an official download, with a bar while it runs and a table at the end."""

from __future__ import annotations

from locatvit.data.prepare.plan import PrepareOptions
from locatvit.data.prepare.run import Prepared, prepare
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import SPLITS
from locatvit.errors import LocAtError
from locatvit.recipes.data_config import PrepareConfig
from locatvit.recipes.data_progress import progress
from locatvit.report.tables import NONE, Table

_MOST_NAMED = 5


def prepare_data(name: str, config: PrepareConfig) -> Prepared:
    """Prepare the data set of a name; see ``locatvit.data.prepare.run.prepare``.

    Raises:
        LocAtError: no root, or what ``prepare`` refuses.
    """
    if config.root is None:
        page = f", from {SETS[name].page}" if name in SETS else ""
        raise LocAtError(f"--root must be given: the folder of the official download{page}; see locatvit data --help")
    with progress(f"preparing {name}") as on_progress:
        return prepare(
            name,
            PrepareOptions(config.root.expanduser(), config.train_list, config.sbd),
            config.output,
            partial=config.partial,
            num_workers=config.num_workers,
            on_progress=on_progress,
        )


def prepared_table(prepared: Prepared) -> tuple[Table, list[str]]:
    """Images of each split beside the official counts, and the lines that belong below."""
    rows = []
    for split in SPLITS:
        official = prepared.expected.get(split)
        rows.append((split, f"{prepared.counts[split]:,}", NONE if official is None else f"{official:,}"))
    notes = [_done(prepared)]
    if prepared.missing:
        more = len(prepared.missing) - _MOST_NAMED
        named = ", ".join(prepared.missing[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"missing, and left out: {named}")
    if any(prepared.counts[split] != count for split, count in prepared.expected.items()):
        notes.append("This is a part of the data set: its numbers do not compare with published ones.")
    return Table(("split", "images", "official"), tuple(rows)), notes


def _done(prepared: Prepared) -> str:
    total = sum(prepared.counts.values())
    seconds = f"{prepared.seconds:.1f} s"
    if prepared.folder is None:
        return f"checked: {total:,} images with their masks, in {seconds}; the layout is right, nothing was written"
    there = total - prepared.converted
    return f"written: {prepared.folder} ({prepared.converted:,} images converted, {there:,} there already; {seconds})"
