"""What is measured, as data: shapes, batches and the targets that hold for them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class Case:
    """One shape, in one kind of pass.

    Attributes:
        family: which model it is, or is taken from: ``"tiny"`` and ``"base"`` (ViT), ``"swin"``.
        grid_size: (height, width), in patches.
        batch_size: images; windows count as images of their own.
        train: forward and backward; otherwise forward, without gradients.
        precision: of the arithmetic, a type of torch's.
        calls: calls between two readings of the clock. On a GPU several, so that launches run ahead as in a model.
    """

    level: ClassVar[str]
    family: str
    grid_size: tuple[int, int]
    batch_size: int
    train: bool
    precision: str = "float32"
    calls: int = 1

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def pass_name(self) -> str:
        return "train" if self.train else "forward"

    @property
    def name(self) -> str:
        return f"{self.level}-{self.family}-{self.num_patches}-{self.pass_name}"


@dataclass(frozen=True)
class OpCase(Case):
    """Attention alone, from queries, keys, values, variances and alpha to the output.

    Attributes:
        num_heads, head_dim: H and K.
        num_prefix_tokens: P.
        num_windows: windows of an image, each with a bias of its own beside LocAt's (Swin); 0 for no such bias.
    """

    level: ClassVar[str] = "op"
    num_heads: int = 3
    head_dim: int = 64
    num_prefix_tokens: int = 1
    num_windows: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches

    @property
    def logit_bytes(self) -> int:
        """Of all logits at a time, in float32."""
        return 4 * self.batch_size * self.num_heads * self.num_tokens**2


@dataclass(frozen=True)
class RefinementCase(Case):
    """PRR alone: the [CLS] row, and what all rows cost."""

    level: ClassVar[str] = "prr"
    num_heads: int = 3
    head_dim: int = 64

    @property
    def num_tokens(self) -> int:
        return 1 + self.num_patches


@dataclass(frozen=True)
class ModelCase(Case):
    """A whole model with LocAt, over the same plain one.

    Attributes:
        model: a name of timm's.
        image_size: pixels a side.
        time_target: the most that the time may be, over the plain model's; None: no target.
        memory_target: the same for the peak memory.
    """

    level: ClassVar[str] = "model"
    model: str = ""
    image_size: int = 224
    time_target: float | None = None
    memory_target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.level}-{self.family}-{self.image_size}-{self.pass_name}"

    @property
    def num_tokens(self) -> int:
        return 1 + self.num_patches

    @property
    def logit_bytes(self) -> int:
        """Of all logits at a time, in float32: training keeps those of every layer."""
        return 4 * self.batch_size * HEADS[self.family] * self.num_tokens**2 * (DEPTH if self.train else 1)


HEADS = {"tiny": 3, "base": 12}
MODELS = {"tiny": "vit_tiny_patch16_224", "base": "vit_base_patch16_224"}
PATCH_SIZE, DEPTH = 16, 12

# family and side of the grid: batch and calls, on a CPU and on a GPU, where they fill it
_OP = {
    ("tiny", 14): ((8, 1), (2048, 20)),
    ("tiny", 32): ((2, 1), (256, 10)),
    ("tiny", 64): ((1, 1), (32, 5)),
    ("base", 14): ((4, 1), (512, 20)),
    ("base", 32): ((1, 1), (64, 10)),
    ("base", 64): ((1, 1), (8, 5)),
}
_WINDOWS = ((64 * 8, 1), (64 * 128, 20))  # the first stage of Swin at 224 pixels: 64 windows an image
_PRR = {
    ("tiny", 14): ((8, 1), (1024, 50)),
    ("tiny", 32): ((2, 1), (256, 20)),
    ("tiny", 64): ((1, 1), (32, 10)),
    ("base", 14): ((4, 1), (256, 50)),
    ("base", 32): ((1, 1), (64, 20)),
    ("base", 64): ((1, 1), (8, 10)),
}
# family, pixels, whether training: batch, and targets of time and memory
_CPU_MODELS = {
    ("tiny", 224, False): (8, 1.10, None),
    ("base", 224, False): (4, 1.05, None),
    ("tiny", 512, False): (2, 1.15, None),
    ("base", 512, False): (1, None, None),
    ("tiny", 1024, False): (1, 1.25, 1.15),
    ("tiny", 224, True): (8, 1.07, None),
    ("base", 224, True): (4, 1.03, None),
    ("tiny", 512, True): (2, 1.15, None),
}
_GPU_BATCHES = {
    ("tiny", 224): 512,
    ("tiny", 512): 128,
    ("tiny", 1024): 32,
    ("base", 224): 256,
    ("base", 512): 48,
    ("base", 1024): 12,
}
_GPU_TARGET = 1.05  # of forward + backward, time and memory, at every size
_QUICK = {
    "op-tiny-196-forward", "op-tiny-196-train", "op-tiny-1024-forward", "windows-swin-49-forward",
    "prr-tiny-196-forward", "prr-tiny-196-train", "model-tiny-224-forward",
}  # fmt: skip

DENSE_BYTES = {"cpu": 512 << 20, "cuda": 24 << 30}
"""The most that the logits of one pass may take, all layers, for what makes them whole to be measured."""
REFERENCE_TOKENS = 256
"""The most tokens for which the reference is measured: it is no attention for use."""


@dataclass(frozen=True)
class WindowCase(OpCase):
    """Attention in Swin's windows."""

    level: ClassVar[str] = "windows"


def cases(device_type: str) -> tuple[Case, ...]:
    """All cases for a kind of device, each level together."""
    on_cpu = device_type == "cpu"
    column, models = (0, _cpu_models()) if on_cpu else (1, _gpu_models())
    found = (*_op_cases(column), *_window_cases(column), *_refinement_cases(column), *models)
    return found if on_cpu else tuple(replace(case, precision="bfloat16") for case in found)


def is_quick(case: Case) -> bool:
    """Whether it belongs to the selection of a couple of minutes."""
    return case.name in _QUICK


def _op_cases(column: int) -> Iterator[Case]:
    for train in (False, True):
        for (family, side), batches in _OP.items():
            batch, calls = batches[column]
            yield OpCase(family, (side, side), batch, train, calls=calls, num_heads=HEADS[family])


def _window_cases(column: int) -> Iterator[Case]:
    batch, calls = _WINDOWS[column]
    for train in (False, True):
        yield WindowCase("swin", (7, 7), batch, train, calls=calls, head_dim=32, num_prefix_tokens=0, num_windows=64)


def _refinement_cases(column: int) -> Iterator[Case]:
    for train in (False, True):
        for (family, side), batches in _PRR.items():
            batch, calls = batches[column]
            yield RefinementCase(family, (side, side), batch, train, calls=calls, num_heads=HEADS[family])


def _cpu_models() -> Iterator[Case]:
    for (family, size, train), (batch, time, memory) in _CPU_MODELS.items():
        yield _model_case(family, size, batch, train, time, memory)


def _gpu_models() -> Iterator[Case]:
    for train in (False, True):
        target = _GPU_TARGET if train else None
        for (family, size), batch in _GPU_BATCHES.items():
            yield _model_case(family, size, batch, train, target, target)


def _model_case(family: str, size: int, batch: int, train: bool, time: float | None, memory: float | None) -> ModelCase:
    grid = (size // PATCH_SIZE, size // PATCH_SIZE)
    return ModelCase(
        family, grid, batch, train,
        model=MODELS[family], image_size=size, time_target=time, memory_target=memory,
    )  # fmt: skip
