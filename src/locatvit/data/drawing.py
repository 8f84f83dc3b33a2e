"""Drawing of a procedural scene: textured shapes on a cluttered ground, by numpy and PIL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from locatvit.data.shapes import SHAPES, Outline
from locatvit.data.spec import SPLITS, Split
from locatvit.errors import LocAtError

CLASSES = tuple(SHAPES)

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
    texture = _texture(rng, max(cover.shape), _shape_colour(rng, ground, config))[: cover.shape[0], : cover.shape[1]]
    canvas[window] += cover[:, :, None] * (texture - canvas[window])
    mask[window][cover >= 0.5] = label + 1


def _coverage(outline: Outline, centre: Vector, radius: float, angle: float, shape: tuple[int, ...]) -> Pixels:
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
