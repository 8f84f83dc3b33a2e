"""The quick start's page: table, curves, segmentations, attention maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from locatvit.analysis.attention_maps import attention_maps
from locatvit.data.scenes import SceneMasks
from locatvit.data.transforms import segmentation_transform
from locatvit.evaluation.extract import frozen_features
from locatvit.evaluation.segmentation import SegmentationHead, predict
from locatvit.recipes.config import SegmentRun, TrainRun
from locatvit.recipes.quickstart_config import MODEL_KWARGS, QuickstartConfig
from locatvit.recipes.run import build_model, read_run_model
from locatvit.recipes.segmentation import HEAD_FILE
from locatvit.report.figures import attention_sheet, curves, segmentation_sheet, to_png_bytes
from locatvit.report.html import write_report
from locatvit.report.sections import Picture, Section, provenance_section
from locatvit.report.tables import Table, difference_table, per_class_table, results_table
from locatvit.results import Result, read_metrics

NAMES = {"vit": "ViT", "locatvit": "ViT + LocAt", "gaug": "ViT + GAug", "prr": "ViT + PRR"}
NEXT_STEPS = """\
locatvit quickstart --variants '["vit", "gaug", "prr", "locatvit"]' --seeds '[0, 1]' --run_dir runs/ablation
locatvit train --help
locatvit segment --help"""
PAGE = "report.html"
Transform = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_NUM_SHEET_IMAGES = 6
_ATTENTION_SCENE = 5


@dataclass(frozen=True)
class _Trained:
    """One variant of the first seed with its head."""

    name: str
    model: nn.Module
    head: SegmentationHead


def write_page(
    config: QuickstartConfig,
    runs: list[tuple[TrainRun, SegmentRun]],
    results: list[Result],
    *,
    seconds: float,
) -> Path:
    """Write ``report.html`` into the quick start's folder and return its path."""
    first = runs[: len(config.variants)]
    trained = [_load(name, *pair) for name, pair in zip(config.variants, first, strict=True)]
    scenes = SceneMasks("val")
    transform = segmentation_transform(first[0][1].augment, training=False)
    sections = [
        Section("Results", paragraphs=(_SETTING.format(**_setting(config, results)),), tables=_tables(results)),
        Section("Training", pictures=(_curves(config, runs),)),
        Section(
            "Segmentation from frozen features",
            (_SEGMENTATION,),
            pictures=(_segmentations(trained, scenes, transform),),
        ),
        Section("Where patches look", (_ATTENTION,), pictures=(_attention(trained, scenes, transform),)),
        Section("IoU of each class", tables=(per_class_table([r for r in results if r.task == "segmentation"]),)),
        Section("What comes next", (_NEXT,), code=NEXT_STEPS),
        provenance_section(results, "locatvit quickstart"),
    ]
    summary = (
        f"A small vision transformer and its LocAt twin, trained on {config.num_images:,} procedural scenes for "
        f"{config.epochs} epochs with the same seed and budget; {seconds:.0f} seconds in all."
    )
    return write_report(
        config.run_dir / PAGE,
        title="LocAt quick start: what the patch tokens know",
        summary=summary,
        sections=sections,
    )


_SETTING = (
    "Both models are trained to name the main object of a scene. Then they are frozen, and a small head learns to "
    "segment from their patch tokens (the paper's protocol, last block, before the final norm). "
    "Parameters: {parameters}. Every number was measured in this run, over {seeds} seed(s): small differences "
    "can be chance."
)
_SEGMENTATION = "The backbones never saw a mask. The first scenes of the validation set, not chosen."
_ATTENTION = (
    "Weights of the last block from the marked patch to all patches, averaged over the heads. GAug adds a Gaussian "
    "around the query whose width and strength the query itself predicts."
)
_NEXT = "Each half of LocAt alone, over two seeds; then your own data and models."


def _setting(config: QuickstartConfig, results: list[Result]) -> dict[str, str]:
    parameters = [f"{r.model['parameters']:,}" for r in results if r.task == "classification"]
    return {"parameters": " and ".join(dict.fromkeys(parameters)), "seeds": str(len(config.seeds))}


def _tables(results: list[Result]) -> tuple[Table, ...]:
    differences = difference_table(results)
    return (results_table(results),) if differences is None else (results_table(results), differences)


def _load(variant: str, training: TrainRun, segmentation: SegmentRun) -> _Trained:
    model = build_model(read_run_model(training.run_dir)).eval()
    state = load_file(segmentation.run_dir / HEAD_FILE)
    hidden_dim, embed_dim = state["layers.0.weight"].shape[:2]
    head = SegmentationHead(embed_dim, len(state["layers.3.bias"]), hidden_dim)
    head.load_state_dict(state)
    return _Trained(NAMES[variant], model, head.eval())


def _curves(config: QuickstartConfig, runs: list[tuple[TrainRun, SegmentRun]]) -> Picture:
    rows: dict[str, list[list[dict[str, Any]]]] = {NAMES[variant]: [] for variant in config.variants}
    for index, (training, _) in enumerate(runs):
        rows[NAMES[config.variants[index % len(config.variants)]]].append(read_metrics(training.run_dir))
    return Picture(
        to_png_bytes(curves(rows)), "Training loss and validation accuracy of each model against the epoch",
        "Training loss and top-1 on the validation scenes.",
    )  # fmt: skip


@torch.no_grad()
def _segmentations(trained: list[_Trained], scenes: SceneMasks, transform: Transform) -> Picture:
    shown = [scenes.scene(index) for index in range(_NUM_SHEET_IMAGES)]
    images = torch.stack([_tensor(scenes, transform, index) for index in range(_NUM_SHEET_IMAGES)])
    size = shown[0].mask.shape
    predictions = {t.name: list(predict(frozen_features(t.model), t.head, images, size).numpy()) for t in trained}
    figure = segmentation_sheet(
        [scene.image for scene in shown],
        [scene.mask for scene in shown],
        predictions,
        scenes.spec.classes,
        255,
    )
    return Picture(to_png_bytes(figure), "Scenes, their true masks and each model's masks")


def _attention(trained: list[_Trained], scenes: SceneMasks, transform: Transform) -> Picture:
    image = _tensor(scenes, transform, _ATTENTION_SCENE)[None]
    scene = scenes.scene(_ATTENTION_SCENE)
    patch = MODEL_KWARGS["patch_size"]
    points = _points(scene.mask, scene.label + 1, patch)
    last = MODEL_KWARGS["depth"] - 1
    maps = {}
    for t in trained:
        weights = attention_maps(t.model, image, [last])
        maps[t.name] = [weights.of_patch(last, *point)[0].mean(0).numpy() for point in points]
    return Picture(
        to_png_bytes(attention_sheet(scene.image, points, maps)),
        "Attention of three patches of one scene, for each model",
        "A patch on the main object, one on a smaller object, one on the background.",
    )


def _tensor(scenes: SceneMasks, transform: Transform, index: int) -> torch.Tensor:
    image, mask = scenes[index]
    return transform(image, mask)[0]


def _points(mask: np.ndarray, main: int, patch: int) -> list[tuple[int, int]]:
    """The patch with the most pixels of the main object, of any other object, and of the background."""
    height, width = (side // patch for side in mask.shape)
    blocks = mask[: height * patch, : width * patch].reshape(height, patch, width, patch)
    points = []
    for wanted in (blocks == main, (blocks != main) & (blocks != 0), blocks == 0):
        share = wanted.sum(axis=(1, 3)).astype(float)
        # of equals, the one nearest to the middle
        rows, columns = np.indices(share.shape)
        share -= 1e-3 * (np.abs(rows - height / 2) + np.abs(columns - width / 2))
        row, column = np.unravel_index(share.argmax(), share.shape)
        points.append((int(row), int(column)))
    return points
