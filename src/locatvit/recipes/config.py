"""What a complete run is, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locatvit.config import LocAtConfig
from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.training.config import ClassificationConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and with which weights it starts.

    Attributes:
        name: one of ours (locatvit_tiny, ...) or of timm's (vit_tiny_patch16_224, ...).
        kwargs: for its creation, e.g. {"img_size": 32, "patch_size": 4, "depth": 6}.
        locat: LocAt's settings. For one of our names null means the defaults; a timm name gets LocAt only
            where this is given.
        checkpoint: weights to start from: a file, a folder, or hf-hub:owner/name.
        pretrained: load the weights published under the name.
        label: the family's name in tables, the same for the plain model and its LocAt twin.
    """

    name: str = "locatvit_tiny"
    kwargs: dict[str, Any] = field(default_factory=dict)
    locat: LocAtConfig | None = None
    checkpoint: str | None = None
    pretrained: bool = False
    label: str = "ViT"


@dataclass(frozen=True)
class DataConfig:
    """Which data.

    Attributes:
        name: scenes, cifar100, folder, camvid, or one of timm's (hfds/..., wds/..., torch/..., tfds/...).
        root: folder of the data; scenes needs none.
        train_options: of the training split, e.g. {"num_images": 4000} for scenes, {"download": true} for cifar100.
        val_options: of the validation split.
        max_bad_images: unreadable images that are skipped, by name, before the run stops.
    """

    name: str = "scenes"
    root: Path | None = None
    train_options: dict[str, Any] = field(default_factory=dict)
    val_options: dict[str, Any] = field(default_factory=dict)
    max_bad_images: int = 0

    def __post_init__(self) -> None:
        if self.max_bad_images < 0:
            raise LocAtError(f"max_bad_images is {self.max_bad_images}; it must be a whole number >= 0")


@dataclass(frozen=True)
class TrainRun:
    """Training of a classifier.

    Attributes:
        run_dir: the run's folder: config.yaml, metrics.jsonl, checkpoints/, model.safetensors, result.json.
        model: see ModelConfig.
        data: see DataConfig.
        augment: of the training images; its image_size, mean and std hold for validation too.
        training: length, optimiser, schedule, mixing.
    """

    run_dir: Path = Path("runs/train")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)
    training: ClassificationConfig = field(default_factory=ClassificationConfig)


@dataclass(frozen=True)
class SegmentRun:
    """Training and measuring of a segmentation head on a frozen backbone.

    Attributes:
        run_dir: the run's folder, as for training; head.safetensors holds the head.
        backbone: folder of a training run; its model and weights are used. Null to say it in ``model``.
        model: the backbone, where there is no such folder.
        data: masks: camvid, folder or scenes.
        augment: of the training images; its short_side, mean and std hold for validation too.
        protocol: see SegmentationConfig.
    """

    run_dir: Path = Path("runs/segment")
    backbone: Path | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(name="camvid"))
    augment: SegmentationAugment = field(default_factory=SegmentationAugment)
    protocol: SegmentationConfig = field(default_factory=SegmentationConfig)
