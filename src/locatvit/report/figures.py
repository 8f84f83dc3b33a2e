"""Figures as matplotlib objects, drawn without a screen and without pyplot's global state.

matplotlib is imported when the first figure is made: nothing else of the package pays for it.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Integer, Num

from locatvit.errors import LocAtError
from locatvit.report.drawables import (
    Array,
    MetricRows,
    as_fractions,
    check_image,
    check_mask,
    check_same_length,
    class_palette,
    common_grid,
    horizontal_key,
    series,
)
from locatvit.report.palette import IGNORE, model_colours, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# 100 CSS pixels an inch, twice as many in the file: sharp on dense screens
_DPI = 200
_WIDTH = 7.6
_INK, _SOFT, _RULE = "#22262B", "#5F6772", "#DDE1E6"
_STYLE = {
    "font.size": 10,
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
    "text.parse_math": False,
}
_PANELS = {"train_loss": ("Training loss (nats)", 1), "top1": ("Top-1 (%)", 100), "miou": ("mIoU (%)", 100)}


def curves(metric_rows_by_name: Mapping[str, Sequence[MetricRows]]) -> Figure:
    """Training loss and the validation metric against the epoch, one colour a model.

    Args:
        metric_rows_by_name: model name to one list of metric rows a seed (``results.read_metrics``). Several
            seeds are thin lines with their mean, over the epochs that all have, as a thick one.

    Raises:
        LocAtError: no row has a loss or a metric to draw.
    """
    runs = [run for seeds in metric_rows_by_name.values() for run in seeds]
    over = horizontal_key(runs)
    panels = [key for key in _PANELS if any(series(run, key, over) for run in runs)]
    if not panels:
        raise LocAtError(
            f"the metric rows of {', '.join(metric_rows_by_name) or 'no model'} have none of "
            f"{', '.join(_PANELS)}; a curve needs at least one"
        )
    shades = model_colours(len(metric_rows_by_name))
    with _figure(_WIDTH, 3.5, pad=0.08) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, key in zip(axes, panels, strict=True):
            for seeds, colour in zip(metric_rows_by_name.values(), shades, strict=True):
                _draw_seeds(axis, [series(run, key, over) for run in seeds], colour, _PANELS[key][1])
            _label_panel(axis, key, over)
        _legend(figure, dict(zip(metric_rows_by_name, shades, strict=True)), place="upper")
    return figure


def segmentation_sheet(
    images: Sequence[Num[Array, "h w 3"]],
    truths: Sequence[Integer[Array, "h w"]],
    predictions_by_name: Mapping[str, Sequence[Integer[Array, "h w"]]],
    classes: Sequence[str],
    ignore_index: int,
) -> Figure:
    """Images, their true masks and each model's masks side by side, one row an image.

    Args:
        images: uint8 or fractions in [0, 1].
        truths: class indices; ``ignore_index`` is grey.
        predictions_by_name: model name to one mask an image.
        classes: names; a class keeps its colour whichever others occur, and "background" is dark. The legend
            has those that occur.
        ignore_index: the label of pixels that do not count.

    Raises:
        LocAtError: the lists differ in length, an image or mask has a wrong shape, or a label has no name.
    """
    masks_by_name = {"Truth": truths, **predictions_by_name}
    check_same_length({"images": len(images), **{name: len(masks) for name, masks in masks_by_name.items()}})
    for index, image in enumerate(images):
        size = check_image(image, f"image {index}")
        for name, masks in masks_by_name.items():
            check_mask(masks[index], f"mask {index} of {name}", size, len(classes), ignore_index)
    colour_of = {**dict(enumerate(class_palette(classes))), ignore_index: IGNORE}
    name_of = {**dict(enumerate(classes)), ignore_index: "not labelled"}
    occurring = sorted({int(label) for masks in masks_by_name.values() for mask in masks for label in np.unique(mask)})
    with _sheet(images, 1 + len(masks_by_name)) as (figure, grid):
        for index, cells in enumerate(grid):
            cells[0].imshow(as_fractions(images[index]))
            for cell, masks in zip(cells[1:], masks_by_name.values(), strict=True):
                cell.imshow(_paint(masks[index], colour_of), interpolation="nearest")
        _head(figure, grid[0], ["Image", *masks_by_name])
        _legend(figure, {name_of[label]: colour_of[label] for label in occurring}, place="lower")
    return figure


def attention_sheet(
    image: Num[Array, "H W 3"],
    points: Sequence[tuple[int, int]],
    maps_by_name: Mapping[str, Sequence[Float[Array, "h w"]]],
) -> Figure:
    """Where chosen patches look: the image with the patch marked, then each model's map over the image.

    Each map is shaded from zero to its own largest weight, which is printed below it.

    Args:
        image: uint8 or fractions in [0, 1].
        points: (row, column) of the query patches on the maps' grid, one row of the sheet each.
        maps_by_name: model name to one map of non-negative weights a point.

    Raises:
        LocAtError: the lists differ in length, the maps differ in shape, or a point is outside the grid.
    """
    check_same_length({"points": len(points), **{name: len(maps) for name, maps in maps_by_name.items()}})
    size = check_image(image, "the image")
    grid_size = common_grid(points, maps_by_name)
    shown = as_fractions(image)
    grey = 0.25 + 0.6 * np.repeat(shown.mean(axis=-1, keepdims=True), 3, axis=-1)
    with _sheet([image] * len(points), 1 + len(maps_by_name), note=0.2) as (figure, grid):
        for index, (point, cells) in enumerate(zip(points, grid, strict=True)):
            cells[0].imshow(shown)
            for cell, maps in zip(cells[1:], maps_by_name.values(), strict=True):
                cell.imshow(grey)
                peak = _draw_heat(cell, maps[index], size)
                cell.set_xlabel(f"largest weight {100 * peak:.1f} %", color=_SOFT, fontsize=9, labelpad=2)
            for cell in cells:
                _mark(cell, point, grid_size, size)
        _head(figure, grid[0], ["Query patch", *maps_by_name])
    return figure


def per_class_bars(per_class_by_name: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """IoU per class as horizontal bars, one colour a model; classes in their order in the data set.

    Args:
        per_class_by_name: model name to class name to fraction; a class that is None everywhere is left out.

    Raises:
        LocAtError: no class has a value.
    """
    every = dict.fromkeys(name for values in per_class_by_name.values() for name in values)
    named = [name for name in every if any(values.get(name) is not None for values in per_class_by_name.values())]
    if not named:
        raise LocAtError(f"per_class of {', '.join(per_class_by_name) or 'no model'} holds no value; nothing to draw")
    count, shades = len(per_class_by_name), model_colours(len(per_class_by_name))
    thickness = 0.78 / count
    with _figure(_WIDTH, 0.8 + len(named) * (0.12 + 0.11 * count)) as figure:
        axis = figure.subplots()
        for index, (values, colour) in enumerate(zip(per_class_by_name.values(), shades, strict=True)):
            places = np.arange(len(named)) + (index - (count - 1) / 2) * thickness
            widths = [100 * (values.get(name) or 0.0) for name in named]
            axis.barh(places, widths, height=0.9 * thickness, color=colour)
        axis.set_yticks(range(len(named)), named)
        axis.set(xlabel="IoU (%)", ylim=(len(named) - 0.5, -0.5))
        axis.grid(visible=False, axis="y")
        axis.tick_params(length=0)
        axis.spines["left"].set_visible(False)
        _legend(figure, dict(zip(per_class_by_name, shades, strict=True)), place="upper")
    return figure


def to_png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_data_uri(figure: Figure) -> str:
    """The figure as a ``data:image/png`` address, for a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(to_png_bytes(figure)).decode("ascii")


def _style() -> AbstractContextManager[None]:
    """The report's style, whatever the reader's own settings of matplotlib are."""
    from matplotlib import style

    return style.context(["default", _STYLE])


@contextmanager
def _figure(width: float, height: float, pad: float = 0.05) -> Iterator[Figure]:
    """An empty figure of a size in inches; the report's style holds while it is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with _style():
        layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, wspace=0.0, hspace=0.0)
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def _sheet(images: Sequence[Array], columns: int, note: float = 0.0) -> Iterator[tuple[Figure, Array]]:
    """A figure with a row of bare cells an image; ``note``: inches for a line below each row."""
    cell = min(1.9, max(1.25, _WIDTH / columns))
    ratios = [np.shape(image)[0] / np.shape(image)[1] for image in images]
    with _figure(cell * columns, cell * sum(ratios) + note * len(images) + 0.35, pad=0.035) as figure:
        grid = figure.subplots(len(images), columns, squeeze=False, height_ratios=ratios)
        for axis in grid.flat:
            axis.grid(visible=False)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        yield figure, grid


def _head(figure: Figure, cells: Sequence[Axes], names: Sequence[str]) -> None:
    for cell, name in zip(cells, names, strict=True):
        width = figure.get_figwidth() / len(cells)
        cell.set_title(textwrap.fill(name, width=max(8, int(12.5 * width))), loc="center", pad=5)


def _legend(figure: Figure, colour_of: Mapping[str, str], *, place: Literal["upper", "lower"]) -> None:
    """Names and colours above or below the figure, which grows by their height."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour) for colour in colour_of.values()]
    width, height = figure.get_size_inches()
    entry = 0.5 + 0.085 * max(map(len, colour_of), default=0)
    columns = max(1, min(len(colour_of), int((width - 0.2) / entry)))
    figure.set_size_inches(width, height + 0.2 * -(-len(colour_of) // columns) + 0.1)
    figure.legend(
        handles,
        list(colour_of),
        loc="outside upper left" if place == "upper" else "outside lower left",
        ncols=columns,
        columnspacing=1.5,
        handlelength=1.0,
        handleheight=1.0,
        borderaxespad=0.3,
    )


def _draw_seeds(axis: Axes, seeds: Sequence[Mapping[float, float]], colour: str, factor: float) -> None:
    single = len(seeds) == 1
    for one in seeds:
        values = [factor * value for value in one.values()]
        axis.plot(list(one), values, color=colour, linewidth=2.2 if single else 0.9, alpha=1.0 if single else 0.55)
    shared = sorted(set.intersection(*(set(one) for one in seeds))) if seeds else []
    if not single and shared:
        axis.plot(
            shared,
            [factor * fmean(one[place] for one in seeds) for place in shared],
            color=colour,
            linewidth=2.2,
        )


def _label_panel(axis: Axes, key: str, over: str) -> None:
    from matplotlib.ticker import MaxNLocator

    title, factor = _PANELS[key]
    axis.set(title=title, xlabel=over.capitalize())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.grid(visible=False, axis="x")
    axis.tick_params(length=0)
    axis.margins(x=0.02)
    if factor == 100:
        axis.set_ylim(bottom=0)


def _paint(mask: Integer[Array, "h w"], colour_of: Mapping[int, str]) -> Float[Array, "h w 3"]:
    """Labels to colours."""
    painted = np.zeros((*np.shape(mask), 3))
    for label in np.unique(mask):
        painted[mask == label] = rgb(colour_of[int(label)])
    return painted


def _draw_heat(cell: Axes, weights: Float[Array, "h w"], size: tuple[int, int]) -> float:
    """Lay a map over an image of ``size`` pixels and return its largest weight."""
    from matplotlib import colormaps

    weights = np.asarray(weights, dtype=float)
    peak = float(weights.max())
    relative = weights / peak if peak > 0 else weights
    shaded = colormaps["inferno"](relative)
    shaded[..., 3] = 0.85 * np.sqrt(relative)
    cell.imshow(shaded, extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5), interpolation="nearest")
    return peak


def _mark(cell: Axes, point: tuple[int, int], grid_size: tuple[int, int], size: tuple[int, int]) -> None:
    """A frame around one patch, visible on any ground."""
    from matplotlib.patches import Rectangle

    height, width = size[0] / grid_size[0], size[1] / grid_size[1]
    corner = (point[1] * width - 0.5, point[0] * height - 0.5)
    for stroke, colour in ((3.0, "black"), (1.4, "#00E5FF")):
        cell.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=stroke))
