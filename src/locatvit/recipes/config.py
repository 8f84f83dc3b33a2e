"""What a complete run is, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locatvit.config import LocAtConfig
from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.training.config import ClassificationConfig, DistillationConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and with which weights it starts.

    Attributes:
        name: one of ours (locatvit_tiny, ...), of timm's (vit_tiny_patch16_224, ...), or a transformers model:
            hf/owner/name on the hub (hf/facebook/dinov2-small) or hf/FOLDER.
        kwargs: for its creation, e.g. {"img_size": 32, "patch_size": 4, "depth": 6}.
        locat: LocAt's settings. For one of our names null means the defaults; a timm name gets LocAt only
            where this is given.
        checkpoint: weights to start from: a file, a folder, or hf-hub:owner/name.
        pretrained: load the weights published under the name.
        label: how tables call the model, the same for a plain model and its LocAt twin. Null for the family,
            e.g. ViT.
    """

    name: str = "locatvit_tiny"
    kwargs: dict[str, Any] = field(default_factory=dict)
    locat: LocAtConfig | None = None
    checkpoint: str | None = None
    pretrained: bool = False
    label: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which data.

    Attributes:
        name: scenes, cifar100, folder; ade20k, pascal_context, coco_stuff, coco_stuff_10k, voc2012, cityscapes, camvid
            (after `locatvit data prepare`); or one of timm's (hfds/..., wds/..., torch/..., tfds/...).
        root: folder of the data; scenes needs none.
        label: how results call the data, e.g. imagenet or ade20k for a folder of them; the paper's figures
            stand beside results of that label. Null for the name.
        train_options: of the training split, e.g. {"num_images": 4000} for scenes, {"download": true} for
            cifar100.
        val_options: of the validation split.
        max_bad_images: how many unreadable images are skipped, by name; one more stops the run.
    """

    name: str = "scenes"
    root: Path | None = None
    label: str | None = None
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
        model: which model, and with which weights it starts.
        data: which images.
        augment: what is done to them; image_size, crop_fraction, mean and std hold for validation too.
        training: length, optimiser, schedule, mixing.
        distillation: a teacher to learn from in place of the labels.
    """

    run_dir: Path = Path("runs/train")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: ClassificationAugment = field(default_factory=ClassificationAugment)
    training: ClassificationConfig = field(default_factory=ClassificationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


@dataclass(frozen=True)
class CacheConfig:
    """Features of the frozen backbone, kept on disk so that each image is shown to it once.

    Kept are those of images that look the same every time: of the validation images where they are measured more than
    once or a folder is given, and of the training images under ``--augment.random false``. Results do not depend on it.

    Attributes:
        dir: folder of the features; several runs and processes may share it, and it stays. Null: in the run's folder,
            removed when the run has ended.
        max_gib: of all that the folder holds, in GiB; beyond it nothing more is kept. 0 keeps nothing.
    """

    dir: Path | None = None
    max_gib: float = 8.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_gib < float("inf"):
            raise LocAtError(f"max_gib is {self.max_gib}; it must be a number >= 0, 0 to keep nothing")


@dataclass(frozen=True)
class SegmentRun:
    """Training and measuring of a segmentation head on a frozen backbone.

    Attributes:
        run_dir: the run's folder: config.yaml, metrics.jsonl, checkpoints/, head.safetensors, result.json.
        backbone: folder of a training run, whose model and weights are used. Null where model says it.
        model: the backbone, where there is no such folder.
        data: which images and masks (ade20k, camvid, folder, ...).
        augment: what is done to them; short_side, long_side_max, antialias, mean and std hold for validation too.
        protocol: the head, its training and its test.
        cache: where features are kept.
        sheets: how many of the best and of the worst images are drawn, in sheets/; 0 for none.
    """

    run_dir: Path = Path("runs/segment")
    backbone: Path | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(name="camvid"))
    augment: SegmentationAugment = field(default_factory=SegmentationAugment)
    protocol: SegmentationConfig = field(default_factory=SegmentationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    sheets: int = 4

    def __post_init__(self) -> None:
        if self.sheets < 0:
            raise LocAtError(f"sheets is {self.sheets}; it must be a whole number of images, 0 for no sheets")
