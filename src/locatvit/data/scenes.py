"""Procedural scenes: one main shape and smaller ones on a cluttered ground, with a class for every pixel.

Shape alone decides the class; colours and textures are drawn apart from it. Nothing is downloaded, and a
scene is a function of (seed, split, index), so that a data set can be of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from locatvit.data.shapes import SHAPES, Outline
from locatvit.data.spec import IGNORE_INDEX, SPLITS, DataSpec, Split, Task
from locatvit.errors import LocAtError

CLASSES = tuple(SHAPES)
MASK_CLASSES = ("background", *CLASSES)
NUM_IMAGES: dict[Split, int] = {"train": 4000, "val": 1000}

_OVERSAMPLING = 4
_MAIN_RADIUS = (0.26, 0.36)
_MAIN_OFFSET = 0.08
_SMALL_RADIUS = (0.10, 0.15)
_PLACING_TRIES = 10
_ANY_GROUND, _DARK_GROUND = (0.15, 0.85), (0.05, 0.35)
_BRIGHT_SHAPE = (0.45, 1.0)
_LEAST_CONTRAST = 0.55
_TEXTURE_CONTRAST = 0.12

Pixels = NDArray[np.float32]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class SceneConfig:
    """How scenes look.

    Attributes:
        image_size: side of the image in pixels.
        seed: another seed, other scenes.
        max_rotation: shapes are turned by up to this angle either way, in radians.
        num_distractors: small shapes of other classes than the main one's; they are labelled in the mask.
        clutter: strokes on the background; they have no class.
        contrast: ``"bright"`` draws all shapes brighter than the ground, so that a model soon tells figure
            from ground and the shape is what is left to learn. ``"any"`` draws any colour that stands out,
            which takes a small ViT many more epochs.
        noise: standard deviation of the noise on every pixel, of a range of 1.
    """

    image_size: int = 64
    seed: int = 0
    max_rotation: float = 0.25
    num_distractors: int = 3
    clutter: int = 8
    contrast: Literal["bright", "any"] = "bright"
    noise: float = 0.04

    def __post_init__(self) -> None:
        for name, least in (("image_size", 16), ("seed", 0), ("num_distractors", 0), ("clutter", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise LocAtError(f"{name} of scenes is {value}; it must be a whole number, {least} or more")
        if not 0 <= self.max_rotation <= math.pi:
            raise LocAtError(f"max_rotation of scenes is {self.max_rotation}; it must be 0 to pi radians")
        if self.contrast not in ("bright", "any"):
            raise LocAtError(f"contrast of scenes is {self.contrast!r}; it must be bright or any")
        if not 0 <= self.noise <= 1:
            raise LocAtError(f"noise of scenes is {self.noise}; it must be in [0, 1]")


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: uint8 ``[size, size, 3]``, RGB.
        mask: uint8 ``[size, size]``: 0 for background, else 1 + the shape's place in ``CLASSES``.
        label: the main shape's place in ``CLASSES``.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: int


def draw_scene(config: SceneConfig, split: Split, index: int) -> Scene:
    """Draw the scene of an index. Classes take turns, so that any run of indices is balanced."""
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
    size = config.image_size
    label = index % len(CLASSES)
    ground = rng.uniform(*(_DARK_GROUND if config.contrast == "bright" else _ANY_GROUND), 3)
    canvas = _clutter(rng, _texture(rng, size, ground), ground, config.clutter)
    mask = np.zeros((size, size), dtype=np.uint8)
    radius = size * rng.uniform(*_MAIN_RADIUS)
    centre = size * (0.5 + rng.uniform(-_MAIN_OFFSET, _MAIN_OFFSET, 2))
    taken = [(centre, radius)]
    for _ in range(config.num_distractors):
        other = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
        small = size * rng.uniform(*_SMALL_RADIUS)
        taken.append((_place(rng, size, small, taken), small))
        _add_shape(rng, canvas, mask, other, *taken[-1], ground, config)
    _add_shape(rng, canvas, mask, label, centre, radius, ground, config)
    canvas += config.noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene((canvas.clip(0, 1) * 255).astype(np.uint8), mask, label)


def _place(rng: np.random.Generator, size: int, radius: float, taken: list[tuple[Vector, float]]) -> Vector:
    """A centre for a small shape, clear of the circles taken where a few tries find such a place."""
    for _ in range(_PLACING_TRIES):
        centre = rng.uniform(radius, size - radius, 2)
        if all(math.dist(centre, other) > radius + reach for other, reach in taken):
            break
    return centre


def _add_shape(
    rng: np.random.Generator,
    canvas: Pixels,
    mask: NDArray[np.uint8],
    label: int,
    centre: Vector,
    radius: float,
    ground: Vector,
    config: SceneConfig,
) -> None:
    """Paint one textured shape over canvas and mask; ``centre`` is (row, column)."""
    angle = rng.uniform(-config.max_rotation, config.max_rotation)
    top, left = (max(0, int(place - 1.5 * radius)) for place in centre)
    window = (slice(top, int(centre[0] + 1.5 * radius) + 1), slice(left, int(centre[1] + 1.5 * radius) + 1))
    cover = _coverage(SHAPES[CLASSES[label]], centre - (top, left), radius, angle, mask[window].shape)
    texture = _texture(rng, max(cover.shape), _shape_colour(rng, ground, config))[
        : cover.shape[0], : cover.shape[1]
    ]
    canvas[window] += cover[:, :, None] * (texture - canvas[window])
    mask[window][cover >= 0.5] = label + 1


def _coverage(
    outline: Outline, centre: Vector, radius: float, angle: float, shape: tuple[int, ...]
) -> Pixels:
    """The share of each pixel that the shape covers, in [0, 1]."""
    picture = Image.new("L", (shape[1] * _OVERSAMPLING, shape[0] * _OVERSAMPLING))
    brush = ImageDraw.Draw(picture)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for points, value in ((outline.border, 255), (outline.hole, 0)):
        if points is not None:
            corners = (points @ turn.T * radius + centre[::-1]) * _OVERSAMPLING
            brush.polygon(corners.ravel().tolist(), fill=value)
    return np.asarray(picture.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255)


def _shape_colour(rng: np.random.Generator, ground: Vector, config: SceneConfig) -> Vector:
    """A random colour that stands out from the ground."""
    if config.contrast == "bright":
        return rng.uniform(*_BRIGHT_SHAPE, 3)
    while True:
        colour = rng.uniform(0, 1, 3)
        if np.linalg.norm(colour - ground) >= _LEAST_CONTRAST:
            return colour


def _texture(rng: np.random.Generator, size: int, colour: Vector) -> Pixels:
    """``[size, size, 3]``: stripes, checks or blotches between two colours near ``colour``."""
    other = colour + rng.normal(0, _TEXTURE_CONTRAST, 3)
    kind = rng.integers(3)
    if kind == 2:
        coarse = rng.random((5, 5), dtype=np.float32)
        pattern = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    else:
        angle, phase, width = rng.uniform(0, math.pi), rng.uniform(0, 8), rng.uniform(2, 5)
        places = np.arange(size, dtype=np.float32)
        along = np.add.outer(places * math.sin(angle), places * math.cos(angle)) + phase
        pattern = np.floor(along / width) % 2
        if kind == 1:
            across = np.add.outer(places * math.cos(angle), -places * math.sin(angle)) + phase
            pattern = (pattern + np.floor(across / width)) % 2
    return (colour + pattern[:, :, None] * (other - colour)).astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: Pixels, ground: Vector, strokes: int) -> Pixels:
    """Lines and arcs in colours near the ground's."""
    size = len(canvas)
    picture = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))
    brush = ImageDraw.Draw(picture)
    for _ in range(strokes):
        colour = tuple(((ground + rng.normal(0, 0.2, 3)).clip(0, 1) * 255).astype(int).tolist())
        row, column = rng.uniform(-0.1, 1.1, 2) * size
        length, angle = rng.uniform(0.1, 0.5) * size, rng.uniform(0, 2 * math.pi)
        if rng.random() < 0.5:
            end = (column + length * math.cos(angle), row + length * math.sin(angle))
            brush.line([(column, row), end], fill=colour, width=int(rng.integers(1, 4)))
        else:
            start = math.degrees(angle)
            brush.arc([column, row, column + length, row + length], start, start + 120, fill=colour, width=2)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


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
        self.spec = DataSpec(
            "scenes", self._task, self._classes, self._ignore_index, (image_size, image_size)
        )
        self.split = split
        self.transform = transform
        self.num_images = NUM_IMAGES[split] if num_images is None else num_images
        if self.num_images < 1:
            raise LocAtError(f"num_images of scenes is {self.num_images}; it must be 1 or more")
        self._cache = (
            [draw_scene(self.config, split, index) for index in range(self.num_images)] if cache else None
        )

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
