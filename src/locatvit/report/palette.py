"""Colours that stay apart for colour-blind readers, for any number of models or classes."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

Array = np.ndarray

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color, without black; the darkest and clearest first
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
IGNORE = "#BDBDBD"
"""Grey: pixels without a label."""
BACKGROUND = "#2B3038"
"""Dark: the class that everything else stands on."""

# protanopia and deuteranopia as linear maps of linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1)
_VISION = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
)
# linear RGB to cone responses to Oklab (Ottosson, 2020)
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def model_colours(count: int) -> list[str]:
    """One colour a line or bar, dark enough for a white ground: hex texts, the same ones each time."""
    return [colour for colour in colours(count + 1) if colour != "#F0E442"][:count]


@cache
def colours(count: int) -> tuple[str, ...]:
    """``count`` colours as hex texts; the first ones stay the same when ``count`` grows.

    Okabe and Ito's seven, then, one by one, the colour furthest from all before it and from the greys of
    ignored pixels and background. Distance: in Oklab, the smallest to normal, protan and deutan eyes.
    """
    chosen = np.array([rgb(colour) for colour in (*_OKABE_ITO, IGNORE, BACKGROUND)])
    steps = np.linspace(0.0, 1.0, 11)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    # near-white and near-black would read as paper and ink, pure hues glare beside the others
    lightness, *chroma = _oklab(candidates).T
    calm = (lightness > 0.38) & (lightness < 0.94) & (np.hypot(*chroma) < 0.2)
    candidates = candidates[calm]
    distance = _distance(candidates, chosen).min(axis=1)
    found = list(_OKABE_ITO[:count])
    while len(found) < count:
        best = candidates[distance.argmax()]
        found.append("#" + "".join(f"{round(255 * channel):02X}" for channel in best))
        distance = np.minimum(distance, _distance(candidates, best[None])[:, 0])
    return tuple(found)


def _distance(a: Float[Array, "n 3"], b: Float[Array, "m 3"]) -> Float[Array, "n m"]:
    """The smallest distance over the kinds of vision."""
    seen = [np.linalg.norm(_oklab(a, eye)[:, None] - _oklab(b, eye)[None], axis=-1) for eye in _VISION]
    return np.min(seen, axis=0)


def _oklab(rgb: Float[Array, "n 3"], vision: Float[Array, "3 3"] = _VISION[0]) -> Float[Array, "n 3"]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0.0, 1.0)
    return np.cbrt(seen @ _TO_LMS.T) @ _TO_OKLAB.T


def rgb(colour: str) -> list[float]:
    """``"#0072B2"`` to three fractions."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
