"""The settings of the two Hummingbird protocols, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from locatvit.errors import LocAtError

HummingbirdProtocol = Literal["hummingbird", "hummingbird_locat"]
Unlabelled = Literal["left_out", "first_class", "extra_class"]
Matching = Literal["identity", "hungarian"]
MeanOver = Literal["shown", "all"]
MeasuredAt = Literal["mask", "query"]
Sampling = Literal["rare_classes", "uniform"]
Search = Literal["torch", "faiss"]

PRESETS: dict[str, dict[str, Any]] = {
    "hummingbird": {
        "unlabelled": "left_out",
        "matching": "identity",
        "mean_over": "shown",
        "measured_at": "mask",
    },
    "hummingbird_locat": {
        "unlabelled": "first_class",
        "matching": "hungarian",
        "mean_over": "all",
        "measured_at": "query",
    },
}
"""What each protocol sets where the configuration says nothing. The second is the authors' code, to the letter."""
_EXTRA_CLASS = frozenset({"ade20k"})
"""Data whose unlabelled pixels are a class of their own in the authors' code: the 151 classes of ADE20K."""
_FREE = frozenset({"protocol", "backend", "max_memory_gib", "batch_size", "num_workers", "seed"})
"""Fields that make no other protocol."""


@dataclass(frozen=True)
class HummingbirdConfig:
    """Dense retrieval: labels of the nearest patches in a memory of training patches. Nothing is trained.

    Source: Balazevic et al., "Towards In-context Scene Understanding", NeurIPS 2023, in the form of Table 4 of the
    LocAt paper. Two protocols. ``hummingbird`` counts as segmentation does: predicted classes are taken as they are,
    at the mask's own size, pixels without a label count nowhere, images keep their ratio. ``hummingbird_locat`` is
    the code behind Table 4 with all its quirks; use it to compare with that table, and with nothing else. What is
    null follows the protocol; see ``PRESETS``.

    Attributes:
        protocol: the name under which the result is filed; it decides what is null here and in augment.
        neighbours: patches of the memory that vote, k.
        temperature: of the softmax over the cosines of those.
        memory_size: patches in the memory, shared out evenly over the training images; null for all patches.
        sampling: which patches of an image, where memory_size leaves some out: "rare_classes" draws those with rare
            classes of the image rather (the source's way), "uniform" any.
        augmentation_epochs: passes over the training images, each with new crops.
        layer: the block of a ViT, or stage of Swin or a ConvNet, whose output is read; negative counts from the end.
            Null for the last one whose patches are 16 pixels or finer: a ViT's last block, Swin's third stage.
        norm: put that output through the backbone's final norm. The paper reads it raw.
        unlabelled: pixels without a label, in the memory: "left_out", their patches have the shares of the other
            pixels; "first_class", they are class 0, the authors' way for VOC; "extra_class", they are a class of
            their own, which can be predicted, the authors' way for ADE20K. They never count as truth.
        matching: "identity" takes predicted classes as they are; "hungarian" renames them, one to one, so that the
            sum of the IoUs is the largest, as for clusters: never lower, and not what a user of the masks gets.
        mean_over: "shown", the classes that show in prediction or truth; "all", the others count as 0.
        measured_at: "mask", labels are measured at their own size; "query", resized to that of the query image.
        backend: "torch" searches in chunks on the model's device; "faiss" (extra retrieval) on the CPU.
        max_memory_gib: the most that the memory may take, in GiB; a larger one is refused before anything is computed.
        batch_size: training images at a time.
        seed: of crops, jitter and sampling.
        num_workers: processes that load data.

    Raises:
        LocAtError: a value outside its range.
    """

    protocol: HummingbirdProtocol = "hummingbird"
    neighbours: int = 30
    temperature: float = 0.02
    memory_size: int | None = None
    sampling: Sampling = "rare_classes"
    augmentation_epochs: int = 1
    layer: int | None = None
    norm: bool = False
    unlabelled: Unlabelled | None = None
    matching: Matching | None = None
    mean_over: MeanOver | None = None
    measured_at: MeasuredAt | None = None
    backend: Search = "torch"
    max_memory_gib: float = 16.0
    batch_size: int = 64
    seed: int = 42
    num_workers: int = 4

    def __post_init__(self) -> None:
        for name in ("neighbours", "augmentation_epochs", "batch_size"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
        least = self.neighbours
        enough = self.memory_size is None or self.memory_size >= least
        _check("memory_size", self.memory_size, enough, f"neighbours ({least}) or more, or null for all patches")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a number > 0")
        _check("max_memory_gib", self.max_memory_gib, 0 < self.max_memory_gib < math.inf, "a number > 0, in GiB")
        _check("seed", self.seed, 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647")
        _check("num_workers", self.num_workers, self.num_workers >= 0, "a whole number >= 0")
        for name, kind in (
            ("protocol", HummingbirdProtocol), ("sampling", Sampling), ("unlabelled", Unlabelled),
            ("matching", Matching), ("mean_over", MeanOver), ("measured_at", MeasuredAt), ("backend", Search),
        ):  # fmt: skip
            value, choices = getattr(self, name), get_args(kind)
            _check(name, value, value is None or value in choices, f"one of {', '.join(choices)}")

    def resolved(self, data_name: str, layer: int) -> HummingbirdConfig:
        """The same with everything that was null settled, but for memory_size.

        Args:
            data_name: the data set's name or label; ADE20K's unlabelled pixels are a class in the authors' code.
            layer: the backbone's last one of 16 pixels a patch or finer, for a configuration that names none.
        """
        preset = _preset(self.protocol, data_name) | {"layer": layer}
        return replace(self, **{name: value for name, value in preset.items() if getattr(self, name) is None})

    def changed(self, data_name: str, layer: int) -> dict[str, Any]:
        """Fields that are not the protocol's, with their values; empty for the protocol as it is published.

        Args:
            data_name, layer: see ``resolved``.
        """
        own = self.resolved(data_name, layer)
        published = HummingbirdConfig(protocol=self.protocol).resolved(data_name, layer)
        found = {field.name: getattr(own, field.name) for field in fields(self) if field.name not in _FREE}
        # without memory_size nothing is sampled
        ineffective = {"sampling"} if self.memory_size is None else set()
        return {
            name: value
            for name, value in found.items()
            if name not in ineffective and value != getattr(published, name)
        }


def _preset(protocol: HummingbirdProtocol, data_name: str) -> dict[str, Any]:
    preset = PRESETS[protocol]
    if protocol == "hummingbird_locat" and data_name in _EXTRA_CLASS:
        return preset | {"unlabelled": "extra_class"}
    return preset


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise LocAtError(f"{name} is {value!r}; it must be {rule}")
