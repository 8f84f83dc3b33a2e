"""The quick start as data. No torch: the command line reads this for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from locatvit.config import LocAtConfig
from locatvit.data.config import ClassificationAugment, SegmentationAugment
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.recipes.config import DataConfig, ModelConfig, SegmentRun, TrainRun
from locatvit.training.config import ClassificationConfig

IMAGE_SIZE = 64
MODEL_KWARGS = {"img_size": IMAGE_SIZE, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
VARIANTS: dict[str, LocAtConfig | None] = {
    "vit": None,
    "locatvit": LocAtConfig(),
    "gaug": LocAtConfig(prr=False),
    "prr": LocAtConfig(gaug=False),
}
"""What the quick start can train: the plain ViT, LocAt, and each half of LocAt alone."""


@dataclass(frozen=True)
class QuickstartConfig:
    """A small ViT and its LocAt twin on procedural scenes.

    Attributes:
        run_dir: holds a folder a run, and report.html.
        epochs: of training; 8 take about four minutes on two CPU cores.
        num_images: for training.
        head_updates: of the segmentation head.
        seeds: each is a run a variant.
        variants: of vit, locatvit, gaug (without PRR), prr (without GAug).
    """

    run_dir: Path = Path("runs/quickstart")
    epochs: int = 8
    num_images: int = 4000
    head_updates: int = 300
    seeds: tuple[int, ...] = (0,)
    variants: tuple[str, ...] = ("vit", "locatvit")

    def __post_init__(self) -> None:
        for name in ("seeds", "variants"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise LocAtError(f"{name} is empty; give at least one")
        if self.num_images < 64:
            raise LocAtError(f"num_images is {self.num_images}; it must be at least 64, one batch")
        for variant in self.variants:
            if variant not in VARIANTS:
                raise LocAtError(f"variants has {variant!r}; known: {', '.join(VARIANTS)}")

    def runs(self) -> list[tuple[TrainRun, SegmentRun]]:
        """Training and segmentation of each variant and seed, twins with the same seed and budget side by side."""
        return [self._run(variant, seed) for seed in self.seeds for variant in self.variants]

    def _run(self, variant: str, seed: int) -> tuple[TrainRun, SegmentRun]:
        folder = self.run_dir / (f"{variant}_seed{seed}" if len(self.seeds) > 1 else variant)
        data = DataConfig(
            name="scenes",
            train_options={"num_images": self.num_images, "cache": True},
            val_options={"cache": True},
        )
        half = (0.5, 0.5, 0.5)
        training = TrainRun(
            run_dir=folder,
            model=ModelConfig(name="vit_tiny_patch16_224", kwargs=MODEL_KWARGS, locat=VARIANTS[variant]),
            data=data,
            augment=ClassificationAugment(
                image_size=IMAGE_SIZE, rand_augment=None, random_erasing=0, random_crop_padding=4, crop_fraction=1.0
            ),
            training=ClassificationConfig(
                epochs=self.epochs, warmup_epochs=0.15 * self.epochs, batch_size=64, lr=2e-3,
                mixup=0, cutmix=0, seed=seed, num_workers=0, evaluate_every_epochs=2,
            ),
        )  # fmt: skip
        segmentation = SegmentRun(
            run_dir=folder / "segmentation",
            backbone=folder,
            data=data,
            augment=SegmentationAugment(
                short_side=IMAGE_SIZE, long_side_max=IMAGE_SIZE, ratio_range=(1, 1),
                crop_size=(IMAGE_SIZE, IMAGE_SIZE), max_class_share=1, photometric=False, mean=half, std=half,
            ),
            protocol=SegmentationConfig(
                num_updates=self.head_updates, evaluate_every=self.head_updates, seed=seed, num_workers=0
            ),
        )  # fmt: skip
        return training, segmentation
