"""Image folders for segmentation: images beside masks of the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from locatvit.data.images import IMAGE_EXTENSIONS, read_image, read_mask
from locatvit.data.layout import LAYOUT, read_classes
from locatvit.data.spec import IGNORE_INDEX, Colour, DataSpec, Split
from locatvit.errors import LocAtError


class SegmentationFolder(Dataset[tuple[Any, Any]]):
    """``images/<split>/NAME.jpg`` with ``annotations/<split>/NAME.png``, and ``classes.txt``, a name a line.

    Args:
        split: ``"train"`` or ``"val"``.
        root: the folder that holds all three.
        transform: ``(PIL image, int64 mask [H, W])`` to what an item shall be.
        name: what the spec calls the data set.
        image_size: (height, width) where all images share it.
        palette: a colour a class, where the data set has its own.

    Raises:
        LocAtError: a part of the layout is missing, there are no images, or an image stands without its mask
            or a mask without its image. Items raise it for a mask that does not fit its image or its classes.
    """

    def __init__(
        self,
        split: Split,
        root: Path | None,
        transform: Callable[..., Any] | None = None,
        *,
        name: str = "folder",
        image_size: tuple[int, int] | None = None,
        palette: tuple[Colour, ...] | None = None,
    ) -> None:
        if root is None:
            raise LocAtError(f"data set {name!r} needs root: the folder that holds {LAYOUT}")
        self.spec = DataSpec(name, "segmentation", read_classes(root), IGNORE_INDEX, image_size, palette)
        self.transform = transform
        self.pairs = _pairs(root / "images" / split, root / "annotations" / split)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path, str(image_path)), read_mask(mask_path, self.spec)
        if (image.height, image.width) != tuple(mask.shape):
            raise LocAtError(
                f"image {image_path} is {image.height}x{image.width} (height x width) and its mask "
                f"{mask.shape[0]}x{mask.shape[1]}; the two must have one size"
            )
        return self.transform(image, mask) if self.transform else (image, mask)

    def describe(self, index: int) -> str:
        """The image's path."""
        return str(self.pairs[index][0])


def _pairs(image_folder: Path, mask_folder: Path) -> list[tuple[Path, Path]]:
    """Images and masks of the same name, sorted by it."""
    images, masks = _by_stem(image_folder, IMAGE_EXTENSIONS), _by_stem(mask_folder, (".png",))
    if not images and not masks:
        raise LocAtError(f"{image_folder} holds no images; expected {LAYOUT}")
    _check_partners(images, masks, "image", f"mask {mask_folder}/{{}}.png")
    _check_partners(masks, images, "mask", f"image {image_folder}/{{}}.jpg")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise LocAtError(f"no folder {folder}; expected {LAYOUT}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in extensions or path.name.startswith("."):
            continue
        if path.stem in found:
            raise LocAtError(f"{folder} has {found[path.stem].name} and {path.name}; a name must stand for one file")
        found[path.stem] = path
    return found


def _check_partners(some: dict[str, Path], others: dict[str, Path], kind: str, partner: str) -> None:
    lonely = sorted(some.keys() - others.keys())
    if lonely:
        more = f" ({len(lonely)} such files)" if len(lonely) > 1 else ""
        raise LocAtError(
            f"{kind} {some[lonely[0]]} has no {partner.format(lonely[0])}{more}; add it or remove the {kind}"
        )
