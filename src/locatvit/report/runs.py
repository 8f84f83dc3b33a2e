"""Run folders to one report, as Markdown or as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locatvit.errors import LocAtError
from locatvit.report.aggregate import by_task, titles
from locatvit.report.html import write_report
from locatvit.report.sections import Picture, Section, provenance_section
from locatvit.report.tables import difference_table, per_class_groups, per_class_table, results_table
from locatvit.results import Result, read_metrics, read_result
from locatvit.storage import write_text

# bars for more classes than this fill pages; the table has them all
_MOST_BARS = 40
_TITLE = "LocAt: results"


@dataclass(frozen=True)
class Run:
    """A run's result and its metric rows."""

    result: Result
    rows: Sequence[Mapping[str, Any]]


def report_runs(run_dirs: Iterable[Path]) -> str:
    """A Markdown report of the runs: results, differences, per-class IoU and how they were made.

    Args:
        run_dirs: run folders. Runs that differ in the seed alone are averaged; a folder given twice counts
            once.

    Raises:
        LocAtError: no folder, or one without a readable result.
    """
    return _markdown(read_runs(run_dirs))


def write_runs_report(run_dirs: Iterable[Path], path: Path) -> Path:
    """Write the report of the runs to ``path``, as its ending says: ``.html`` with figures, or ``.md``.

    Raises:
        LocAtError: another ending, no folder, one without a readable result, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".html", ".md"):
        raise LocAtError(f"the report's file is {path.name!r}; its name must end in .html or .md")
    runs = read_runs(run_dirs)
    if path.suffix == ".md":
        write_text(path, _markdown(runs))
        return path
    return write_report(path, title=_TITLE, summary=_summary(runs), sections=_sections(runs, with_pictures=True))


def read_runs(run_dirs: Iterable[Path]) -> list[Run]:
    """Result and metric rows of every folder, each folder once, in the order given.

    Raises:
        LocAtError: no folder, or one without a readable result.
    """
    folders = dict.fromkeys(Path(folder).resolve() for folder in run_dirs)
    if not folders:
        raise LocAtError("0 run folders given; a report needs one or more, e.g. locatvit report runs/*")
    return [Run(read_result(folder), read_metrics(folder)) for folder in folders]


def curve_pictures(runs: Sequence[Run]) -> tuple[Picture, ...]:
    """Training curves, one picture a task and data set; nothing for runs without metric rows."""
    from locatvit.report.figures import curves, to_png_bytes

    rows_of = {id(run.result): run.rows for run in runs if run.rows}
    pictures = []
    for (task, data), groups in by_task([run.result for run in runs]).items():
        named = zip(titles(groups), groups, strict=True)
        series = {name: [rows_of[id(r)] for r in group.results if id(r) in rows_of] for name, group in named}
        series = {name: found for name, found in series.items() if found}
        if series:
            alt = f"Training loss and validation metric of {', '.join(series)}: {task} on {data}."
            many = any(len(found) > 1 for found in series.values())
            caption = f"{task.capitalize()} on {data}." + " Thin lines: single seeds; thick lines: their mean." * many
            pictures.append(Picture(to_png_bytes(curves(series)), alt, caption))
    return tuple(pictures)


def _markdown(runs: Sequence[Run]) -> str:
    sections = "\n".join(section.to_markdown() for section in _sections(runs, with_pictures=False))
    return f"# {_TITLE}\n\n{_summary(runs)}\n\n{sections}"


def _summary(runs: Sequence[Run]) -> str:
    data = ", ".join(dict.fromkeys(str(run.result.data.get("name", "unnamed")) for run in runs))
    return (
        f"{len(runs)} run{'s' * (len(runs) != 1)} on {data}. Every figure of ours was measured by one of the "
        "runs listed at the end; the paper's stands beside it where the experiment is the same."
    )


def _sections(runs: Sequence[Run], *, with_pictures: bool) -> list[Section]:
    results = [run.result for run in runs]
    difference = difference_table(results)
    sections = [Section("Results", tables=(results_table(results),))]
    if difference is not None:
        sections.append(Section("What LocAt adds", tables=(difference,)))
    sections += _per_class_sections(results, with_pictures=with_pictures)
    if with_pictures and (pictures := curve_pictures(runs)):
        sections.append(Section("Training", pictures=pictures))
    return [*sections, provenance_section(results)]


def _per_class_sections(results: Sequence[Result], *, with_pictures: bool) -> list[Section]:
    """A section for each data set, and for each protocol where several were run on it."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.per_class:
            found.setdefault((str(result.data.get("name")), result.protocol), []).append(result)
    sections = []
    for (data, protocol), shown in found.items():
        several = sum(name == data for name, _ in found) > 1
        title = f"Classes of {data}" + f", protocol {protocol}" * several
        pictures = _bars(shown, data) if with_pictures else ()
        sections.append(Section(title, tables=(per_class_table(shown),), pictures=pictures))
    return sections


def _bars(results: Sequence[Result], data: str) -> tuple[Picture, ...]:
    from locatvit.report.figures import per_class_bars, to_png_bytes

    groups = per_class_groups(results)
    values = {name: group.per_class() for name, group in zip(titles(groups), groups, strict=True)}
    seen = {name for found in values.values() for name, value in found.items() if value is not None}
    if not 0 < len(seen) <= _MOST_BARS:
        return ()
    alt = f"Bars of the IoU of each class of {data} for {', '.join(values)}; the table has the numbers."
    return (Picture(to_png_bytes(per_class_bars(values)), alt, f"IoU per class on {data}."),)
