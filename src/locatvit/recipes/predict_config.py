"""What is predicted, as data. No torch: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from locatvit.errors import LocAtError

OverlayFormat = Literal["jpg", "png", "none"]
# PIL itself takes more for an attack
_MOST_MEGAPIXELS = 89.0


@dataclass(frozen=True)
class PredictConfig:
    """Masks and overlays of photos, by a trained segmentation head.

    Attributes:
        run: folder of a finished segmentation run.
        images: photos, or folders that are searched for photos with all that is below them.
        output: folder for masks/, overlays/ and predictions.json; not within a folder of images.
        overlay: the overlays' format; none writes none.
        opacity: of the colours in an overlay, 0 to 1.
        overwrite: predict anew what is there already, and put masks in the place of files of other photos.
        checkpoint: where the backbone's weights are now, if they were moved since the run: a file or a folder.
        max_bad_images: how many unreadable photos are skipped, by name; one more stops the run.
        max_megapixels: a photo with more millions of pixels counts as unreadable. 50 take about 4 GB of memory.

    Raises:
        LocAtError: a value outside its range.
    """

    run: Path
    images: tuple[Path, ...]
    output: Path = Path("predictions")
    overlay: OverlayFormat = "jpg"
    opacity: float = 0.5
    overwrite: bool = False
    checkpoint: Path | None = None
    max_bad_images: int = 0
    max_megapixels: float = 50.0

    def __post_init__(self) -> None:
        # a YAML file gives a list
        object.__setattr__(self, "images", tuple(Path(place).expanduser() for place in self.images))
        if not self.images:
            raise LocAtError("images is empty; give photos, or folders of photos")
        if self.overlay not in get_args(OverlayFormat):
            raise LocAtError(f"overlay is {self.overlay!r}; it must be one of {', '.join(get_args(OverlayFormat))}")
        if not 0 <= self.opacity <= 1:
            raise LocAtError(f"opacity is {self.opacity}; it must be in [0, 1]")
        if self.max_bad_images < 0:
            raise LocAtError(f"max_bad_images is {self.max_bad_images}; it must be a whole number >= 0")
        if not 0 < self.max_megapixels <= _MOST_MEGAPIXELS:
            raise LocAtError(
                f"max_megapixels is {self.max_megapixels}; it must be above 0 and at most {_MOST_MEGAPIXELS:g}"
            )
