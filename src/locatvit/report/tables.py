"""Results as tables: for the terminal, as Markdown and, through the page's template, as HTML.

Results hold fractions; percent with two decimals appear here and nowhere else. A difference is in points of
percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from locatvit.errors import LocAtError
from locatvit.report.aggregate import Estimate, Group, estimate, group_results, settings_apart, titles, twin
from locatvit.report.paper import paper_figure
from locatvit.results import Result

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NONE = "-"
METRICS = {
    "top1": "top-1 (%)",
    "miou": "mIoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "boundary_iou": "boundary IoU (%)",
}
"""The metrics that tables show, in order: name in ``Result.metrics`` to heading."""
MARKDOWN_ESCAPES = str.maketrans({c: f"\\{c}" for c in "\\|*`<>[]"} | {"\n": " "})


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        columns: headings.
        rows: one text a column each.
        text_columns: how many columns at the left are words; the rest are numbers, set flush right.
        caption: one sentence, may be empty.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise LocAtError(
                    f"a table row has {len(row)} cells, {row}; it must have {len(self.columns)}, one a column"
                )

    def to_markdown(self) -> str:
        """A Markdown table, with the caption in a line above."""
        lines = [f"{self.caption.translate(MARKDOWN_ESCAPES)}\n"] if self.caption else []
        rule = ["---" if i < self.text_columns else "---:" for i in range(len(self.columns))]
        cells = [[text.translate(MARKDOWN_ESCAPES) for text in row] for row in (self.columns, *self.rows)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))]) + "\n"

    def to_rich(self) -> RichTable:
        """The table for ``rich.print``. Nothing in a cell is read as markup."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(caption=Text(self.caption) if self.caption else None, caption_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if index < self.text_columns else "right")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def results_table(results: Iterable[Result]) -> Table:
    """Model, LocAt, data, parameters, metrics, seeds and the paper's figure, one row an experiment.

    Classification and segmentation of one model on one data set share a row. Results that differ in the seed
    alone are one experiment: mean ± standard deviation. Where a result's settings are not those of the frozen
    protocol, the row says so, the caption says which, and the paper's figure is marked as not comparable.
    """
    groups = group_results(results)
    protocols = _Protocols(groups)
    lines = list(_lines(groups, protocols))
    shown = [name for name in METRICS if any(m.estimate(name) for members, _ in lines for m in members)]
    columns = (
        "model",
        "LocAt",
        "data",
        "parameters",
        *(METRICS[name] for name in shown),
        "seeds",
        "paper (%)",
    )
    rows = tuple(_results_row(members, note, shown) for members, note in lines)
    spread = any("±" in cell for row in rows for cell in row)
    captions = ("Mean ± standard deviation over seeds.",) * spread + protocols.notes
    return Table(columns, rows, text_columns=3, caption=" ".join(captions))


def difference_table(results: Iterable[Result]) -> Table | None:
    """What LocAt adds to the plain model trained alike, in points; None where no plain model was run.

    With the same seeds on both sides the spread is that of the differences seed by seed; otherwise it is left
    out.
    """
    groups = group_results(results)
    paired = {id(group): plain for group in groups if (plain := twin(group, groups)) is not None}
    with_twin = [group for group in groups if id(group) in paired]
    protocols = _Protocols(with_twin)
    rows, shown = [], dict.fromkeys(METRICS, False)
    for members, note in _lines(with_twin, protocols):
        gains = {name: _first(_gain(member, paired[id(member)], name) for member in members) for name in METRICS}
        shown = {name: shown[name] or gains[name] is not None for name in METRICS}
        rows.append((_noted(members[0].label, note), members[0].locat, members[0].data, gains))
    if not any(shown.values()):
        return None
    names = [name for name, any_gain in shown.items() if any_gain]
    columns = ("model", "LocAt", "data", *(METRICS[name].removesuffix(" (%)") for name in names), "seeds")
    return Table(
        columns,
        tuple(
            (*words, *(points(gains[name]) for name in names), _counts(gains[name] for name in names))
            for *words, gains in rows
        ),
        text_columns=3,
        caption=" ".join(("The model with LocAt minus the plain one, in points of percent.", *protocols.notes)),
    )


def per_class_table(results: Iterable[Result]) -> Table:
    """IoU in percent, one row a class, one column a model; ``-`` for a class that the data never shows.

    Raises:
        LocAtError: no result has per-class figures, or they are of several data sets.
    """
    groups = per_class_groups(results)
    names = dict.fromkeys(name for group in groups for name in group.per_class())
    found = [group.per_class() for group in groups]
    rows = [(name, *(_fraction(values.get(name)) for values in found)) for name in names]
    mean = ("mean", *(percent(group.estimate("miou")) for group in groups))
    return Table(("class", *titles(groups)), (*rows, mean), caption="IoU per class, percent.")


def per_class_groups(results: Iterable[Result]) -> list[Group]:
    """The experiments that have per-class figures.

    Raises:
        LocAtError: none has, or they are of several data sets.
    """
    groups = [group for group in group_results(results) if group.per_class()]
    data = sorted({group.data for group in groups})
    if len(data) != 1:
        which = f"are of {len(data)} data sets, {', '.join(data)}" if data else "are in none of the results"
        raise LocAtError(f"per-class figures {which}; a per-class table needs segmentation results of one data set")
    return groups


def percent(value: Estimate | None) -> str:
    """``"53.70"``, or ``"53.70 ± 0.41"`` over several seeds; ``"-"`` for nothing."""
    if value is None:
        return NONE
    return f"{100 * value.mean:.2f}" + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")


def points(value: Estimate | None) -> str:
    """A signed difference in points of percent: ``"+9.30 ± 0.52"``; ``"-"`` for nothing."""
    if value is None:
        return NONE
    mean = round(100 * value.mean, 2) or 0.0
    return f"{mean:+.2f}" + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")


def _lines(groups: Sequence[Group], protocols: _Protocols) -> Iterable[tuple[list[Group], str]]:
    """The groups of each row, and a note: the protocol where it needs a name, and what tells two rows apart."""
    alike: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.label, group.locat, group.data), []).append(group)
    for members in alike.values():
        shown = [name for member in members for name in METRICS if name in member.first.metrics]
        if len(set(shown)) == len(shown):
            yield members, protocols.name(members)
            continue
        for member in members:
            same = [other for other in members if other.first.protocol == member.first.protocol]
            yield [member], ", ".join(filter(None, (protocols.name([member]), settings_apart(member, same))))


class _Protocols:
    """What rows say of their protocol, and the notes on what was changed in it.

    Args:
        groups: all that the table shows.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        # the paper's protocol alone needs no name
        self._named = {group.protocol for group in groups} - {"", "locat"}
        changed = list(dict.fromkeys((group.protocol, group.changes) for group in groups if group.changes))
        # a number each, where one "changed" would stand for different changes
        numbers = [f" ({number})" for number in range(1, len(changed) + 1)] if len(changed) > 1 else [""]
        self._changed = {
            (protocol, changes): f"{protocol}, changed{number}"
            for (protocol, changes), number in zip(changed, numbers[: len(changed)], strict=True)
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """``"locat, changed: num_updates 600."`` for every set of changes."""
        return tuple(f"{name}: {changes}." for (_, changes), name in self._changed.items())

    def name(self, members: Sequence[Group]) -> str:
        """``"linear"``, or ``"locat, changed"`` with the number of its note; empty where it needs no name."""
        plain = [group.protocol if self._named else "" for group in members]
        found = [
            self._changed.get((group.protocol, group.changes), name) for group, name in zip(members, plain, strict=True)
        ]
        return ", ".join(filter(None, found))


def _results_row(members: Sequence[Group], note: str, shown: Sequence[str]) -> tuple[str, ...]:
    first = members[0]
    parameters = first.first.model.get("parameters")
    measured = [_first(member.estimate(name) for member in members) for name in shown]
    return (
        _noted(first.label, note),
        first.locat,
        first.data,
        NONE if parameters is None else f"{parameters:,}",
        *map(percent, measured),
        _counts(measured),
        _paper(members, several=sum(value is not None for value in measured) > 1),
    )


def _paper(members: Sequence[Group], *, several: bool) -> str:
    """The paper's figures for a row; the metric is named where the row has several."""
    found = [(figure, member) for member in members if (figure := paper_figure(member.first)) is not None]
    named = [
        (f"{METRICS[figure.metric].removesuffix(' (%)')} " if several else "")
        + str(figure)
        + (", not comparable" if member.changes else "")
        for figure, member in found
    ]
    return ", ".join(named) or NONE


def _gain(group: Group, plain: Group, metric: str) -> Estimate | None:
    ours, theirs = group.by_seed(metric), plain.by_seed(metric)
    if not ours or not theirs:
        return None
    if set(ours) == set(theirs):
        return estimate([ours[seed] - theirs[seed] for seed in ours])
    gain = estimate(list(ours.values())).mean - estimate(list(theirs.values())).mean
    return Estimate(gain, None, min(len(ours), len(theirs)))


def _first(values: Iterable[Estimate | None]) -> Estimate | None:
    return next((value for value in values if value is not None), None)


def _counts(values: Iterable[Estimate | None]) -> str:
    """How many seeds a row stands on; all numbers where its metrics differ in it."""
    return ", ".join(dict.fromkeys(str(value.count) for value in values if value is not None)) or NONE


def _noted(label: str, note: str) -> str:
    return f"{label} ({note})" if note else label


def _fraction(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"
