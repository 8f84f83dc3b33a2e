"""The figures that the paper reports, and which of them belongs beside a result of ours.

Source: Hajimiri et al., "Locality-Attending Vision Transformer", ICLR 2026, Tables 1 and 3-8, kept as printed
in ``paper_tables/``: metrics in percent, parameters in millions, multiply-adds in billions.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError, near_matches
from locatvit.results import Result

PaperTable = Literal[
    "table1_main",
    "table3_dino",
    "table3_small",
    "table4_hummingbird",
    "table5_ablation",
    "table6_related",
    "table7_attention_ablation",
    "table8_kernels",
]
Row = tuple[str, ...]

# how many of a table's first columns name its row
_KEY_COLUMNS: dict[str, int] = {"table1_main": 3, "table4_hummingbird": 2}

# our names of the backbones that the paper trains: (method, size)
_HOSTS: dict[str, tuple[str, str]] = {
    **{f"vit_{size}_patch16_224": ("vit", size) for size in ("tiny", "small", "base")},
    **{f"locatvit_{size}": ("vit", size) for size in ("tiny", "small", "base")},
    **{f"locatvit_{size}_reg4": ("regvit", size) for size in ("tiny", "base")},
    **{f"swin_{size}_patch4_window7_224": ("swin", size) for size in ("tiny", "base")},
    **{f"locatswin_{size}": ("swin", size) for size in ("tiny", "base")},
    **{f"vit_{size}_patch16_rope_mixed_224": ("ropevit", size) for size in ("tiny", "base")},
    **{f"locatvit_{size}_rope_mixed": ("ropevit", size) for size in ("tiny", "base")},
    **{f"jumbo_{size}": ("jumbo", size) for size in ("tiny", "base")},
    **{f"locatjumbo_{size}": ("jumbo", size) for size in ("tiny", "base")},
}

# (protocol, data set) to the columns that hold it; where a table has both sizes, without the size
_COLUMNS: dict[tuple[str, str], dict[str, str]] = {
    ("classification", "imagenet"): {
        "table1_main": "imagenet_top1",
        "table5_ablation": "imagenet",
        "table8_kernels": "imagenet",
    },
    ("classification", "mini_imagenet"): {
        "table3_small": "mini_imagenet",
        "table7_attention_ablation": "mini_imagenet",
    },
    ("classification", "cifar100"): {"table3_small": "cifar100"},
    ("locat", "ade20k"): {"table1_main": "ade20k_miou", "table5_ablation": "ade20k", "table8_kernels": "ade20k"},
    ("locat", "pascal_context"): {
        "table1_main": "pascal_context_miou",
        "table5_ablation": "pascal_context",
        "table8_kernels": "pascal_context",
    },
    ("locat", "coco_stuff"): {
        "table1_main": "coco_stuff_miou",
        "table5_ablation": "coco_stuff",
        "table8_kernels": "coco_stuff",
    },
    ("hummingbird_locat", "voc2012"): {"table4_hummingbird": "voc"},
    ("hummingbird_locat", "ade20k"): {"table4_hummingbird": "ade20k"},
}
# other names under which the same data are opened
_SAME_DATA = {
    **dict.fromkeys(("torch/imagenet", "wds/imagenet", "hfds/ILSVRC/imagenet-1k"), "imagenet"),
    **dict.fromkeys(("hfds/timm/imagenet-1k-wds", "hfds/imagenet-1k"), "imagenet"),
    "hfds/timm/mini-imagenet": "mini_imagenet",
    **dict.fromkeys(("hfds/cifar100", "hfds/uoft-cs/cifar100", "torch/cifar100"), "cifar100"),
}
_METRICS = {"classification": "top1", "locat": "miou", "hummingbird_locat": "miou"}
_MEMORY_IMAGES = {"voc2012": 10_582, "ade20k": 20_210}
_PLAIN: dict[str, Any] = {"gaug": False, "prr": False}
# how LocAt's settings differ from the default, and the row of that variant; of Table 7's fixed widths the paper does
# not tell the constants
_VARIANTS: tuple[tuple[dict[str, Any], PaperTable, str], ...] = (
    ({"prr": False}, "table5_ablation", "vit+gaug"),
    ({"gaug": False}, "table5_ablation", "vit+prr"),
    ({**_PLAIN, "position_embedding": False}, "table5_ablation", "vit-pe"),
    ({"position_embedding": False}, "table5_ablation", "locatvit-pe"),
    ({**_PLAIN, "pooling": "avg"}, "table5_ablation", "vit+gap"),
    ({"variance": "input"}, "table7_attention_ablation", "variance_from_input"),
    ({"variance": "isotropic"}, "table7_attention_ablation", "isotropic"),
    ({"alpha": "none"}, "table7_attention_ablation", "no_scaling"),
    ({"alpha": "auto"}, "table7_attention_ablation", "auto_scaling"),
    ({"kernel": "inverse_distance"}, "table8_kernels", "inverse_distance"),
    ({"kernel": "laplace"}, "table8_kernels", "laplace"),
)
# how a model may be built and still be the paper's: what is not listed makes it another one
_NEUTRAL_ARGUMENTS = {"num_classes", "drop_path_rate", "dynamic_img_size"}


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        table, row, column: where it stands.
        metric: the name of the same quantity in ``Result.metrics``.
        percent: the figure as printed.
    """

    table: PaperTable
    row: Row
    column: str
    metric: str
    percent: float

    def __str__(self) -> str:
        number = self.table.removeprefix("table").partition("_")[0]
        return f"{self.percent:.2f} (Table {number})"


@cache
def paper_table(table: PaperTable) -> Mapping[Row, Mapping[str, float]]:
    """One table of the paper, row name to column name to figure, in the paper's order and units.

    Raises:
        LocAtError: no such table.
    """
    if table not in get_args(PaperTable):
        raise LocAtError(f"no table {table!r} of the paper; {near_matches(table, get_args(PaperTable))}")
    text = resources.files(__package__).joinpath(f"paper_tables/{table}.csv").read_text(encoding="utf-8")
    header, *lines = csv.reader(text.splitlines())
    keys = _KEY_COLUMNS.get(table, 1)
    return {tuple(line[:keys]): dict(zip(header[keys:], map(float, line[keys:]), strict=True)) for line in lines}


def paper_value(table: PaperTable, row: str | Row, column: str) -> float:
    """The paper's figure at (table, row, column), as printed: percent, millions or billions.

    Args:
        table: e.g. ``"table1_main"``.
        row: the name of the row; a tuple where several columns name it, e.g. ``("tiny", "vit", "yes")``.
        column: e.g. ``"ade20k_miou"``.

    Raises:
        LocAtError: no such table, row or column; lists the near ones.
    """
    rows = paper_table(table)
    row = (row,) if isinstance(row, str) else tuple(row)
    if row not in rows:
        known = (", ".join(name) for name in rows)
        raise LocAtError(f"{table} has no row {', '.join(row)!r}; {near_matches(', '.join(row), known)}")
    if column not in rows[row]:
        raise LocAtError(f"{table} has no column {column!r}; {near_matches(column, rows[row])}")
    return rows[row][column]


def backbone_name(model_name: str) -> str:
    """One name for a backbone and its LocAt twin: ``"vit tiny"`` for both ``vit_tiny_patch16_224`` and
    ``locatvit_tiny``. A name that is not registered stands for itself.
    """
    host = _HOSTS.get(model_name)
    registers = " reg4" if model_name.endswith("_reg4") else ""
    return model_name if host is None else " ".join(host) + registers


def paper_figure(result: Result) -> PaperFigure | None:
    """The paper's figure for the experiment of ``result``, or None where the paper has no such experiment.

    It has one only if protocol, data set, backbone, input size and LocAt's settings are the paper's. How long
    we trained does not matter here: the reader sees both figures and our configuration. Dense retrieval trains
    nothing, so that a changed setting makes it another experiment.
    """
    data = str(result.data.get("name"))
    columns = _COLUMNS.get((result.protocol, _SAME_DATA.get(data, data)))
    host = _paper_host(result)
    if columns is None or host is None or result.data.get("split") == "train":
        return None
    if result.task == "hummingbird" and (result.changed or not _of_the_papers_memory(result)):
        return None
    place = _place(columns, host, _changes(result.model.get("locat")))
    if place is None:
        return None
    table, row, column = place
    value = paper_table(table).get(row, {}).get(column)
    return None if value is None else PaperFigure(table, row, column, _METRICS[result.protocol], value)


def _place(
    columns: Mapping[str, str], host: tuple[str, str], changes: Mapping[str, Any]
) -> tuple[PaperTable, Row, str] | None:
    """Where the paper would print the experiment: (table, row, column)."""
    method, size = host
    if changes in ({}, _PLAIN):
        if "table4_hummingbird" in columns:
            column = f"{columns['table4_hummingbird']}_{'vanilla' if changes else 'locat'}"
            return "table4_hummingbird", (method, size), column
        if "table1_main" in columns:
            return "table1_main", (size, method, "no" if changes else "yes"), columns["table1_main"]
        column = f"{columns['table3_small']}_{'vit' if changes else 'locatvit'}"
        return ("table3_small", (size,), column) if method == "vit" else None
    for variant, table, row in _VARIANTS:
        if changes == variant and method == "vit" and table in columns:
            parts = (columns[table], size) if table == "table7_attention_ablation" else (size, columns[table])
            return table, (row,), "_".join(parts)
    return None


def _paper_host(result: Result) -> tuple[str, str] | None:
    """(method, size) of the paper's backbone that this model is, or None."""
    host = _HOSTS.get(str(result.model.get("name")))
    arguments = dict(result.model.get("kwargs") or {})
    registers = arguments.pop("reg_tokens", 0)
    if host is None or arguments.pop("img_size", 224) not in (224, [224, 224], (224, 224)):
        return None
    # the paper's dense protocols stand on backbones trained on ImageNet
    if result.task in ("segmentation", "hummingbird") and arguments.get("num_classes", 1000) != 1000:
        return None
    if set(arguments) - _NEUTRAL_ARGUMENTS or registers not in (0, 4):
        return None
    return ("regvit", host[1]) if registers and host[0] == "vit" else host


def _of_the_papers_memory(result: Result) -> bool:
    """Whether the memory is of as many images as the paper's: of VOC those of the augmented list."""
    data = str(result.data.get("name"))
    return result.data.get("memory_images") == _MEMORY_IMAGES.get(_SAME_DATA.get(data, data))


def _changes(locat: Mapping[str, Any] | None) -> dict[str, Any]:
    """How LocAt's settings differ from the default in what the results depend on; a plain model has no part of it."""
    if locat is None:
        return _PLAIN
    usual = asdict(LocAtConfig())
    return {name: value for name, value in locat.items() if name != "backend" and value != usual.get(name)}
