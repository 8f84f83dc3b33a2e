"""The settings of the protocols, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from locatvit.errors import LocAtError
from locatvit.evaluation import linear_segmentation, locat_segmentation

Precision = Literal["no", "bf16", "fp16"]
"""Arithmetic: ``"no"`` is float32; the others are autocast, fp16 with a gradient scaler (GPU only)."""

SegmentationProtocol = Literal["locat", "linear"]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"locat": locat_segmentation.PRESET, "linear": linear_segmentation.PRESET}
)
"""The frozen protocols: name to the settings that are its own."""

# these say how a run is made, not what it measures
_NOT_FROZEN = frozenset({"evaluate_every", "seed", "num_workers"})


@dataclass(frozen=True)
class SegmentationConfig:
    """A small head on frozen patch tokens.

    What is null is the protocol's own setting, see ``evaluation/locat_segmentation.py`` and
    ``evaluation/linear_segmentation.py``. Any other value is named in the result.

    Attributes:
        protocol: locat is the paper's (one hidden layer, raw last block, whole images); linear is DINOv2's and
            DINOv3's (batch norm and 1x1, last block after the final norm, sliding windows).
        num_updates: training iterations of the head. locat: 20,000; linear: 40,000.
        batch_size: images an update, over all devices together. locat: 32; linear: 16.
        lr: peak learning rate of AdamW, betas 0.9 and 0.999. Both: 0.001.
        weight_decay: of AdamW, on every weight of the head, biases and norm included. locat: 0.01; linear: 0.0001.
        pct_start: share of the updates in which the learning rate climbs; it then falls, both linearly. locat: 0.25;
            linear: 0.0375.
        div_factor: ``lr / div_factor`` is the first learning rate. locat: 1e4; linear: 1e6.
        final_div_factor: ``lr / div_factor / final_div_factor`` is the last one. locat: 1e4; linear has none, it ends
            at 0.
        hidden_dim: channels of the head's hidden layer. locat: 512; linear has none.
        dropout: probability, of whole channels, before linear's convolution. linear: 0; locat has none.
        layer: the block of a ViT, or stage of Swin or a ConvNet, whose output is read; negative counts from
            the end.
        norm: put that output through the backbone's final norm. locat: false; linear: true.
        window_size: side of the test's sliding window in pixels; 0 shows the whole image. locat: 0; linear: 512.
        window_stride: pixels from window to window. linear: 341.
        evaluate_every: updates between two evaluations; the last update is always followed by one. locat: 4,000;
            linear: 10,000.
        seed: of the head's first weights and of the order of the data.
        precision: of the arithmetic; that of both protocols is ``"no"``. The loss is in float32 always.
        num_workers: processes that load data.

    Raises:
        LocAtError: a value outside its range, or a setting that the protocol does not have.
    """

    protocol: SegmentationProtocol = "locat"
    num_updates: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    pct_start: float | None = None
    div_factor: float | None = None
    final_div_factor: float | None = None
    hidden_dim: int | None = None
    dropout: float | None = None
    layer: int = -1
    norm: bool | None = None
    window_size: int | None = None
    window_stride: int | None = None
    evaluate_every: int | None = None
    seed: int = 42
    precision: Precision = "no"
    num_workers: int = 4

    def __post_init__(self) -> None:
        for name, choices in (("protocol", PRESETS), ("precision", get_args(Precision))):
            _check(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")
        value = self.values()
        for name in ("num_updates", "batch_size", "hidden_dim", "evaluate_every"):
            _check(name, value[name], value[name] is None or value[name] >= 1, "a whole number >= 1")
        for name in ("window_size", "window_stride", "num_workers"):
            _check(name, value[name], value[name] >= 0, "a whole number >= 0")
        _check("seed", self.seed, 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647")
        _check("lr", value["lr"], 0 < value["lr"] < math.inf, "a number > 0")
        _check("weight_decay", value["weight_decay"], 0 <= value["weight_decay"] < math.inf, "a number >= 0")
        for name in ("div_factor", "final_div_factor"):
            _check(name, value[name], value[name] is None or 1 <= value[name] < math.inf, "a number >= 1")
        _check("pct_start", value["pct_start"], 0 < value["pct_start"] < 1, "a share between 0 and 1, both excluded")
        _check("dropout", value["dropout"], value["dropout"] is None or 0 <= value["dropout"] < 1, "a share in [0, 1)")
        self._check_climb(value)
        self._check_window(value)

    @property
    def is_windowed(self) -> bool:
        """Whether the test image is seen through a sliding window."""
        return bool(self.values()["window_size"])

    def resolved(self) -> SegmentationConfig:
        """The same with the protocol's own settings in the place of what is None. What it has not stays None."""
        return replace(self, **self.values())

    def changed(self) -> dict[str, Any]:
        """The settings that are not the frozen protocol's, by name; empty for the protocol as published.

        When it is evaluated, from which seed, and by how many workers, is free.
        """
        mine, frozen = self.values(), SegmentationConfig(self.protocol).values()
        return {name: value for name, value in mine.items() if name not in _NOT_FROZEN and value != frozen[name]}

    def values(self) -> dict[str, Any]:
        """Every setting by name, the protocol's own where none is given; None for what the protocol does not have."""
        preset = PRESETS[self.protocol]
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        foreign = {name for other in PRESETS.values() for name in other} - set(preset)
        for name in sorted(foreign):
            if given[name] is not None:
                raise LocAtError(f"{name} is {given[name]!r}, but protocol {self.protocol} has none; leave it out")
        return {name: preset.get(name) if value is None else value for name, value in given.items()}

    @staticmethod
    def _check_climb(value: Mapping[str, Any]) -> None:
        if value["protocol"] == "locat" and value["pct_start"] * value["num_updates"] <= 1:
            raise LocAtError(
                f"num_updates is {value['num_updates']} and pct_start {value['pct_start']}: the learning rate "
                "must climb for more than one update; give num_updates of at least "
                f"{math.floor(1 / value['pct_start']) + 1}"
            )

    @staticmethod
    def _check_window(value: Mapping[str, Any]) -> None:
        size, stride = value["window_size"], value["window_stride"]
        if size and not 1 <= stride <= size:
            raise LocAtError(
                f"window_size is {size} and window_stride {stride}; the stride must be from 1 to the window's size, or "
                "pixels would be left out"
            )


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise LocAtError(f"{name} is {value!r}; it must be {rule}")
