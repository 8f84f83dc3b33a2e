"""A model as a program of its own: ONNX or torch.export, compared with the model before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locatvit.data.config import ClassificationAugment
from locatvit.data.images import IMAGE_EXTENSIONS, read_image
from locatvit.data.transforms import classification_transform
from locatvit.errors import LocAtError
from locatvit.recipes.export_config import ExportConfig
from locatvit.recipes.run import build_model
from locatvit.storage import atomic_write

Program = Callable[[Tensor], Tensor]
_MOST_IMAGES = 8
_LARGEST_BATCH = 4096
_NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        num_bytes: its size.
        batches: numbers of images that it was compared with the model on.
        difference: the largest difference of an output, over the largest output.
        compared_on: the images in words.
    """

    path: Path
    num_bytes: int
    batches: tuple[int, ...]
    difference: float
    compared_on: str


def export(config: ExportConfig) -> Exported:
    """Write the model as a program; what differs from the model is not kept.

    Raises:
        LocAtError: a library is missing; the model cannot be made or exported; images cannot be read; or the program
            computes something else.
    """
    suffix = config.output.suffix
    missing = [name for name in _NEEDED[suffix] if importlib.util.find_spec(name) is None]
    if missing:
        raise LocAtError(f"{suffix} needs {', '.join(missing)}; install them: pip install 'locatvit[export]'")
    model = build_model(config.model).eval()
    images, told = _images(model, config.images)
    found: list[tuple[tuple[int, ...], float]] = []

    def write_and_compare(temporary: Path) -> None:
        try:
            with _quiet():
                program = _WRITERS[suffix](model, images, temporary, config.dynamic_batch)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise LocAtError(f"{config.model.name} cannot be exported to {suffix} ({reason})") from error
        found.append(_compare(model, program, images, config))

    atomic_write(config.output, write_and_compare)
    (batches, difference) = found[0]
    return Exported(config.output, config.output.stat().st_size, batches, difference, told)


def _images(model: Any, source: Path | None) -> tuple[Float[Tensor, "B 3 height width"], str]:
    """Two images or more, as the model wants them, and what they are."""
    told: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None) or told.get("input_size", (3, 224, 224))[-2:]
    if source is None:
        return torch.randn(2, 3, *sides), "noise"
    paths = (
        [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS)
    )
    if not paths:
        raise LocAtError(f"images is {source}, where there is no image; give an image, or a folder of images")
    if sides[0] != sides[1]:
        raise LocAtError(
            f"the model is made for {sides[0]} x {sides[1]} pixels; --images needs a square one: leave it out"
        )
    augment = ClassificationAugment(
        image_size=sides[0],
        crop_fraction=told.get("crop_pct", 0.9),
        mean=told.get("mean", (0.5, 0.5, 0.5)),
        std=told.get("std", (0.5, 0.5, 0.5)),
    )
    transform = classification_transform(augment, training=False)
    taken = [transform(read_image(path, str(path))) for path in paths[:_MOST_IMAGES]]
    return torch.stack(taken * (2 if len(taken) == 1 else 1)), f"{len(taken)} of {source}"


def _program(model: nn.Module, images: Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    example = images if dynamic_batch else images[:1]
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch} if dynamic_batch else None,))


def _write_onnx(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> Program:
    program = _program(model, images, dynamic_batch)
    written = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["outputs"], verbose=False)
    assert written is not None
    written.save(str(path), external_data=False)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _write_program(model: nn.Module, images: Tensor, path: Path, dynamic_batch: bool) -> Program:
    buffer = io.BytesIO()
    torch.export.save(_program(model, images, dynamic_batch), buffer)
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    loaded: Program = torch.export.load(buffer).module()
    return loaded


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, bool], Program]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_program,
}


@torch.no_grad()
def _compare(model: nn.Module, program: Program, images: Tensor, config: ExportConfig) -> tuple[tuple[int, ...], float]:
    """The largest relative difference, over batches that the example was not of, too."""
    batches = (1, len(images), len(images) + 1) if config.dynamic_batch else (1,)
    images = torch.cat([images, images[:1]])
    difference = 0.0
    for count in batches:
        want, got = model(images[:count]), program(images[:count])
        difference = max(difference, ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item())
    if not difference <= config.tolerance:
        raise LocAtError(
            f"the program differs from {config.model.name} by {difference:.2g} of its largest output, and tolerance is "
            f"{config.tolerance:g}; it was not kept. Raise tolerance if that is enough, or choose the other format"
        )
    return batches, difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters report their progress and what they leave as it is."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
