"""What is profiled, as data. No torch: the command line reads it for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from locatvit.config import LocAtConfig
from locatvit.training.config import Precision, check_field


@dataclass(frozen=True)
class ProfileModel:
    """Which model; its weights do not matter for what it costs.

    Attributes:
        name: one of ours (locatvit_tiny, ...), which is set beside its host, or of timm's
            (vit_tiny_patch16_224, ...), which is set beside itself with LocAt.
        kwargs: for the creation of both, e.g. {"img_size": 512} for models that are made for 512 pixels.
        locat: LocAt's settings; null means the defaults, which are the paper's.
    """

    name: str = "locatvit_tiny"
    kwargs: dict[str, Any] = field(default_factory=dict)
    locat: LocAtConfig | None = None


@dataclass(frozen=True)
class ProfileConfig:
    """What is measured, and how long.

    Attributes:
        model: which model, with LocAt and without.
        image_size: pixels a side, or [height, width]; null for the size that the model is made for. A model made
            for another size is switched to all sizes, if it can be: a ViT then resamples its positions at each pass.
        batch_size: images at a time; null for 8 on a CPU and 128 elsewhere.
        precision: of the arithmetic: no is float32; bf16 and fp16 (GPU only) are autocast, as in training.
        backward: measure forward + backward in training mode, too. It takes about four times as long.
        seconds: of timing, forward, and as long again for forward + backward; at least five turns of each model.

    Raises:
        LocAtError: a value outside its range.
    """

    model: ProfileModel = field(default_factory=ProfileModel)
    image_size: int | tuple[int, int] | None = None
    batch_size: int | None = None
    precision: Precision = "no"
    backward: bool = False
    seconds: float = 10.0

    def __post_init__(self) -> None:
        size, batch_size = self.image_size, self.batch_size
        if isinstance(size, list):  # from a YAML file
            object.__setattr__(self, "image_size", tuple(size))
        sides = (size,) if isinstance(size, int) else size or ()
        rule = "a whole number of pixels >= 1, or two, [height, width]"
        check_field("image_size", size, len(sides) <= 2 and all(side >= 1 for side in sides), rule)
        check_field("batch_size", batch_size, batch_size is None or batch_size >= 1, "a whole number >= 1, or null")
        check_field("seconds", self.seconds, 0 < self.seconds < math.inf, "a number > 0")
