"""The shapes of the procedural scenes, as polygons in a unit circle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""``[K, 2]``: corners as (x, y), x to the right, y down, in radii."""


@dataclass(frozen=True)
class Outline:
    """A polygon, with a hole or without."""

    border: Points
    hole: Points | None = None


def _arc(start: float, stop: float, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    """25 points on an arc; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 25))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) + centre


def _square(half_side: float) -> Points:
    return half_side * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _star(points: int, inner: float) -> Points:
    angles = np.radians(-90 + 180 / points * np.arange(2 * points))
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]
    return radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(half_width: float) -> Points:
    """A plus, from one arm turned into four."""
    arm = np.array([[half_width, -half_width], [1.0, -half_width], [1.0, half_width]])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])


def _heart() -> Points:
    turn = np.linspace(0, 2 * np.pi, 49)
    across = 16 * np.sin(turn) ** 3
    down = -13 * np.cos(turn) + 5 * np.cos(2 * turn) + 2 * np.cos(3 * turn) + np.cos(4 * turn)
    return np.stack([across, down - 2], axis=1) / 16


SHAPES: dict[str, Outline] = {
    "disk": Outline(_arc(0, 360)),
    "ring": Outline(_arc(0, 360), hole=_arc(0, 360, 0.5)),
    "square": Outline(_square(0.82)),
    "frame": Outline(_square(0.82), hole=_square(0.42)),
    "triangle": Outline(np.array([[0.0, -1.0], [0.95, 0.75], [-0.95, 0.75]])),
    "star": Outline(_star(5, 0.42)),
    "cross": Outline(_cross(0.32)),
    "crescent": Outline(np.concatenate([_arc(40, 320), _arc(300, 60, 0.88, (0.42, 0.0))])),
    "heart": Outline(_heart()),
    "arrow": Outline(
        np.array(
            [
                [0.0, -1.0],
                [0.85, -0.05],
                [0.32, -0.05],
                [0.32, 0.95],
                [-0.32, 0.95],
                [-0.32, -0.05],
                [-0.85, -0.05],
            ]
        )
    ),
}
