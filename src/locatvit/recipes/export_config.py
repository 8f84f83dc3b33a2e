"""What is exported, as data. No torch: the command line reads it for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from locatvit.errors import LocAtError
from locatvit.recipes.config import ModelConfig

FORMATS = (".onnx", ".pt2")


@dataclass(frozen=True)
class ExportConfig:
    """A model as a program of its own, which runs without this package.

    Attributes:
        model: which model, and with which weights.
        output: the file: .onnx for onnxruntime and the like, .pt2 for torch.export.load.
        dynamic_batch: take any number of images; otherwise one at a time.
        dynamic_size: take images of any height and width, of two patches a side or more, where the model's kind can:
            ViTs whose positions are resampled or rotary. Of a .pt2, both may have to be multiples of the patch.
        images: an image, or a folder of images, on which the program is compared with the model; null for noise.
        tolerance: the largest difference between the two that is let pass, over the largest output.

    Raises:
        LocAtError: a value outside its range.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    output: Path = Path("model.onnx")
    dynamic_batch: bool = True
    dynamic_size: bool = False
    images: Path | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if Path(self.output).suffix not in FORMATS:
            raise LocAtError(f"output is {self.output}; it must end in .onnx, or .pt2 for torch.export.load")
        if not 0 < self.tolerance < math.inf:
            raise LocAtError(f"tolerance is {self.tolerance}; it must be a number > 0")
