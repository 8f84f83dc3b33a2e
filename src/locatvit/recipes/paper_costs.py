"""The paper's "#Params" and "FLOPs" (Table 1), ours beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from locatvit.analysis.cost import Cost, count
from locatvit.backbones.registry import create_model, create_plain
from locatvit.report.paper import paper_table
from locatvit.report.tables import Table

IMAGE_SIZE = (224, 224)

# the paper's name of a method: how ours of its LocAt models are made, whose hosts are the plain ones; and its title
_METHODS = {
    "vit": ("locatvit_{size}", "ViT"),
    "swin": ("locatswin_{size}", "Swin"),
    "regvit": ("locatvit_{size}_reg4", "RegViT"),
    "ropevit": ("locatvit_{size}_rope_mixed", "RoPEViT"),
    "jumbo": ("locatjumbo_{size}", "Jumbo"),
}
_FLOPS_TOLERANCE = 0.01
_REMARKS = {
    "a": "the paper's parameters are cut off after the millions, not rounded",
    "b": "the paper's FLOPs are cut off after two decimals, not rounded",
    "c": "FLOPs differ by more than rounding, and by less than 1 %",
    "!": "DIFFERS: parameters by more than a million, or FLOPs by more than 1 %",
}
_NOTES = (
    "FLOPs are multiply-adds of matrix products and convolutions, a bias being one term more; softmax, exponentials "
    "and norms count nothing. This is how the paper's figures come out (they are those of ptflops, aten backend, "
    "fused attention off). torch's own counter leaves the biases out and gives 0.1 to 0.3 % less.",
    "ours: with PRR over all L tokens, 2 L² D, as in the authors' code. run: PRR for those rows alone that the head "
    "reads, which is what this package computes. %: ours over the paper's.",
)


@dataclass(frozen=True)
class PaperCost:
    """One row of the paper's Table 1, as printed and as counted here.

    Attributes:
        method, size: the paper's names of the row.
        has_locat: whether it is the row with LocAt.
        cost: ours.
        params_m: the paper's parameters, in millions, printed without decimals.
        gflops: the paper's multiply-adds of an image, in billions, printed with two.
    """

    method: str
    size: str
    has_locat: bool
    cost: Cost
    params_m: float
    gflops: float

    @property
    def our_params_m(self) -> float:
        return self.cost.parameters / 1e6

    @property
    def our_gflops(self) -> float:
        """As the paper counts."""
        return self.cost.paper_multiply_adds / 1e9

    @property
    def remarks(self) -> str:
        """Letters of remarks; none where both figures are the paper's, rounded as printed."""
        params, flops = agreement(self.our_params_m, self.params_m, 0), agreement(self.our_gflops, self.gflops, 2)
        is_near = abs(self.our_gflops / self.gflops - 1) <= _FLOPS_TOLERANCE
        if params == "differs" or not is_near:
            return "!"
        return "a" * (params == "cut off") + {"rounded": "", "cut off": "b", "differs": "c"}[flops]


def agreement(ours: float, printed: float, decimals: int) -> str:
    """How ``printed``, which has so many decimals, came of ``ours``: ``"rounded"``, ``"cut off"``; or ``"differs"``."""
    scaled, whole = ours * 10**decimals, round(printed * 10**decimals)
    if abs(scaled - whole) <= 0.5:
        return "rounded"
    return "cut off" if math.floor(scaled) == whole else "differs"


def paper_costs() -> list[PaperCost]:
    """All rows of the paper's Table 1, in its order; 1000 classes."""
    return [
        PaperCost(method, size, locat == "yes", _cost(method, size, locat == "yes"), row["params_m"], row["gflops"])
        for (size, method, locat), row in paper_table("table1_main").items()
    ]


def _cost(method: str, size: str, has_locat: bool) -> Cost:
    name = _METHODS[method][0].format(size=size)
    with torch.device("meta"):  # shapes are enough
        return count(create_model(name) if has_locat else create_plain(name), IMAGE_SIZE)


def paper_costs_table(costs: list[PaperCost]) -> tuple[Table, list[str]]:
    """The rows as a table, and the lines that belong below it."""
    columns = (
        "", "params\npaper\nM", "params\nours\nM", "\n\n%",
        "FLOPs\npaper\nG", "FLOPs\nours\nG", "\n\n%", "FLOPs\nrun\nG",
    )  # fmt: skip
    caption = f"Table 1 of the paper: {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels, 1000 classes."
    found = "".join(cost.remarks for cost in costs)
    good = sum("!" not in cost.remarks for cost in costs)
    notes = [f"{letter}  {words}." for letter, words in _REMARKS.items() if letter in found]
    total = f"{good} of {len(costs)} rows have the paper's parameters to the million, and its FLOPs to 1 %."
    return Table(columns, tuple(map(_row, costs)), caption=caption), [*notes, *_NOTES, total]


def _row(cost: PaperCost) -> tuple[str, ...]:
    title = f"{_METHODS[cost.method][1]}-{cost.size.capitalize()}"
    return (
        f"{'  + LocAt' if cost.has_locat else title} {cost.remarks}".rstrip(),
        f"{cost.params_m:.0f}",
        f"{cost.our_params_m:.3f}",
        f"{100 * (cost.our_params_m / cost.params_m - 1):+.1f}",
        f"{cost.gflops:.2f}",
        f"{cost.our_gflops:.3f}",
        f"{100 * (cost.our_gflops / cost.gflops - 1):+.2f}",
        f"{cost.cost.multiply_adds / 1e9:.3f}",
    )
