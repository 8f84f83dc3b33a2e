"""The settings of the protocols, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from locatvit.errors import LocAtError

Precision = Literal["no", "bf16", "fp16"]
"""Arithmetic: ``"no"`` is float32; the others are autocast, fp16 with a gradient scaler (GPU only)."""


@dataclass(frozen=True)
class SegmentationConfig:
    """A small head on frozen patch tokens. The defaults are the paper's (Section 5; the authors' recipe).

    Attributes:
        protocol: the name under which the result is filed.
        num_updates: training iterations of the head.
        batch_size: images an update, over all devices together.
        lr: peak learning rate of AdamW, betas 0.9 and 0.999.
        weight_decay: of AdamW, on every weight of the head, biases and norm included.
        pct_start: share of the updates in which the learning rate climbs; it then falls, both linearly.
        div_factor: ``lr / div_factor`` is the first learning rate.
        final_div_factor: ``lr / div_factor / final_div_factor`` is the last one.
        hidden_dim: channels of the head's hidden layer.
        layer: the block of a ViT, or stage of Swin or a ConvNet, whose output is read; negative counts from
            the end.
        norm: put that output through the backbone's final norm. The paper reads it raw.
        evaluate_every: updates between two evaluations; the last update is always followed by one.
        seed: of the head's first weights and of the order of the data.
        precision: of the arithmetic; the paper's is ``"no"``. The loss is in float32 always.
        num_workers: processes that load data.

    Raises:
        LocAtError: a value outside its range.
    """

    protocol: Literal["locat"] = "locat"
    num_updates: int = 20_000
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    pct_start: float = 0.25
    div_factor: float = 1e4
    final_div_factor: float = 1e4
    hidden_dim: int = 512
    layer: int = -1
    norm: bool = False
    evaluate_every: int = 4_000
    seed: int = 42
    precision: Precision = "no"
    num_workers: int = 4

    def __post_init__(self) -> None:
        for name in ("num_updates", "batch_size", "hidden_dim", "evaluate_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
        _check("seed", self.seed, 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647")
        _check("num_workers", self.num_workers, self.num_workers >= 0, "a whole number >= 0")
        _check("lr", self.lr, 0 < self.lr < math.inf, "a number > 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number >= 0")
        for name in ("div_factor", "final_div_factor"):
            _check(name, getattr(self, name), 1 <= getattr(self, name) < math.inf, "a number >= 1")
        _check("pct_start", self.pct_start, 0 < self.pct_start < 1, "a share between 0 and 1, both excluded")
        for name, choices in (("protocol", ("locat",)), ("precision", get_args(Precision))):
            _check(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")
        if self.pct_start * self.num_updates <= 1:
            raise LocAtError(
                f"num_updates is {self.num_updates} and pct_start {self.pct_start}: the learning rate "
                "must climb for more than one update; give num_updates of at least "
                f"{math.floor(1 / self.pct_start) + 1}"
            )


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise LocAtError(f"{name} is {value!r}; it must be {rule}")
