"""Procedural scenes: one main shape and smaller ones on a cluttered ground, with a class for every pixel.

Shape alone decides the class; colours and textures are drawn apart from it. Nothing is downloaded, and a
scene is a function of (seed, split, index), so that a data set can be of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from locatvit.data.drawing import CLASSES, Scene, SceneConfig, draw_scene
from locatvit.data.spec import IGNORE_INDEX, DataSpec, Split, Task
from locatvit.errors import LocAtError

MASK_CLASSES = ("background", *CLASSES)
NUM_IMAGES: dict[Split, int] = {"train": 4000, "val": 1000}


class _Scenes(Dataset[tuple[Any, Any]]):
    """Scenes by index, drawn when asked for, or once at the start.

    Args:
        split: ``"train"`` or ``"val"``; the two share no scene.
        root: must be None.
        transform: see ``ImageDataset``.
        num_images: the length, by default 4,000 for training and 1,000 for validation.
        cache: draw all at the start and keep them, 4 bytes a pixel (65 MB for 4,000 of 64 pixels, some
            seconds).
        image_size, seed, max_rotation, num_distractors, clutter, contrast, noise: see ``SceneConfig``.

    Raises:
        LocAtError: a root, or a value out of range.
    """

    _task: ClassVar[Task]
    _classes: ClassVar[tuple[str, ...]]
    _ignore_index: ClassVar[int | None]

    def __init__(
        self,
        split: Split,
        root: Path | None = None,
        transform: Callable[..., Any] | None = None,
        *,
        num_images: int | None = None,
        cache: bool = False,
        image_size: int = SceneConfig.image_size,
        seed: int = SceneConfig.seed,
        max_rotation: float = SceneConfig.max_rotation,
        num_distractors: int = SceneConfig.num_distractors,
        clutter: int = SceneConfig.clutter,
        contrast: Literal["bright", "any"] = SceneConfig.contrast,
        noise: float = SceneConfig.noise,
    ) -> None:
        if root is not None:
            raise LocAtError(f"root is {root}, but data set 'scenes' is drawn by the package; leave root out")
        self.config = SceneConfig(image_size, seed, max_rotation, num_distractors, clutter, contrast, noise)
        self.spec = DataSpec("scenes", self._task, self._classes, self._ignore_index, (image_size, image_size))
        self.split = split
        self.transform = transform
        self.num_images = NUM_IMAGES[split] if num_images is None else num_images
        if self.num_images < 1:
            raise LocAtError(f"num_images of scenes is {self.num_images}; it must be 1 or more")
        self._cache = [draw_scene(self.config, split, index) for index in range(self.num_images)] if cache else None

    def __len__(self) -> int:
        return self.num_images

    def scene(self, index: int) -> Scene:
        """The scene itself, with image, mask and label."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"scene {index} of {self.num_images}")
        return self._cache[index] if self._cache else draw_scene(self.config, self.split, index)

    def describe(self, index: int) -> str:
        """Seed, split and index, which make the scene."""
        return f"scene {index} of {self.split}, seed {self.config.seed}"


class SceneLabels(_Scenes):
    """Scenes for classification: (image, class of the main shape)."""

    _task, _classes, _ignore_index = "classification", CLASSES, None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        scene = self.scene(index)
        image = Image.fromarray(scene.image)
        return (self.transform(image) if self.transform else image), scene.label


class SceneMasks(_Scenes):
    """Scenes for segmentation: (image, int64 mask ``[H, W]``); class 0 is the background."""

    _task, _classes, _ignore_index = "segmentation", MASK_CLASSES, IGNORE_INDEX

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        scene = self.scene(index)
        image, mask = Image.fromarray(scene.image), torch.from_numpy(scene.mask).long()
        return self.transform(image, mask) if self.transform else (image, mask)
