"""Time and memory of an image against the number of patches."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.attention.contenders import DENSE, PLAIN
from benchmarks.attention.measure import Outcome
from locatvit.report.palette import model_colours
from locatvit.storage import write_bytes

DRAWN = ("op", "model")
_PASSES = {False: "forward", True: "forward + backward"}
_GREY = "#8A929C"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDE1E6",
    "legend.frameon": False,
    "svg.hashsalt": "locatvit",  # the same file from the same numbers
}


def write_figures(outcomes: Sequence[Outcome], path: Path) -> list[Path]:
    """``path`` with _LEVEL-FAMILY.svg for what was measured at several sizes: attention alone, whole models."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.case.level in DRAWN and outcome.seconds:
            groups.setdefault((outcome.case.level, outcome.case.family), []).append(outcome)
    written = []
    for (level, family), group in groups.items():
        if len({outcome.case.num_patches for outcome in group}) > 1:
            written.append(path.with_name(f"{path.name}_{level}-{family}.svg"))
            with matplotlib.rc_context(_STYLE):
                file = io.BytesIO()
                draw(group).savefig(file, format="svg", metadata={"Date": None})
            write_bytes(written[-1], file.getvalue())
    return written


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Time above, memory below; one column a kind of pass, one line a contender."""
    passes = [train for train in _PASSES if any(outcome.case.train == train for outcome in outcomes)]
    names = sorted({outcome.contender for outcome in outcomes}, key=[o.contender for o in outcomes].index)
    colours = dict(zip([name for name in names if name != PLAIN], model_colours(len(names)), strict=False))
    figure = Figure(figsize=(0.8 + 3.5 * len(passes), 6.0), layout="constrained")
    grid = figure.subplots(2, len(passes), squeeze=False, sharex=True, sharey="row")
    for train, axes in zip(passes, grid.T, strict=True):
        chosen = [outcome for outcome in outcomes if outcome.case.train == train]
        axes[0].set_title(_PASSES[train])
        for axis, value in zip(axes, (_milliseconds, _mebibytes), strict=True):
            _draw_lines(axis, chosen, value, {**colours, PLAIN: _GREY})
        _label_patches(axes[1], sorted({outcome.case.num_patches for outcome in outcomes}))
    grid[0, 0].set_ylabel("ms an image")
    grid[1, 0].set_ylabel("peak memory, MiB an image")
    handles = {line.get_label(): line for axis in grid.flat for line in axis.get_lines()}
    figure.legend(
        [handles[name] for name in names if name in handles],
        [_label(name) for name in names if name in handles],
        loc="outside upper center", ncols=min(5, len(names)),
    )  # fmt: skip
    return figure


def _draw_lines(
    axis: Axes, outcomes: Sequence[Outcome], value: Callable[[Outcome], float | None], colours: dict[str, str]
) -> None:
    for name, colour in reversed(colours.items()):  # the plain one below the others
        points = sorted(
            (outcome.case.num_patches, found)
            for outcome in outcomes
            if outcome.contender == name and (found := value(outcome)) is not None
        )
        if points:
            wide: dict[str, Any] = {"linewidth": 5, "alpha": 0.55}
            thin: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "linestyle": "--" if name == DENSE else "-"}
            patches, values = zip(*points, strict=True)
            axis.plot(patches, values, color=colour, label=name, markersize=4.5, **wide if name == PLAIN else thin)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))


def _label_patches(axis: Axes, counts: Sequence[int]) -> None:
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
    axis.set_xlabel("patches")


def _label(name: str) -> str:
    return name if name in (PLAIN, DENSE) else f"LocAt, {name}"


def _milliseconds(outcome: Outcome) -> float:
    return 1e3 * statistics.median(outcome.seconds) / outcome.case.batch_size


def _mebibytes(outcome: Outcome) -> float | None:
    return None if outcome.peak_bytes is None else outcome.peak_bytes / 2**20 / outcome.case.batch_size
