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
from locatvit.evaluation.extract import accept_any_size
from locatvit.recipes.export_config import ExportConfig
from locatvit.recipes.run import build_model
from locatvit.storage import atomic_write
from locatvit.transformers_hosts import patch_size, towers_of

Program = Callable[[Tensor], Tensor]
Size = tuple[int, int]
_MOST_IMAGES = 8
_LARGEST_BATCH = 4096
_LARGEST_SIDE = 8192
_COARSEST_PATCH = 32  # of a model that does not tell its own
# of programs, on images that they do not take
_REFUSED_IMAGES: tuple[type[Exception], ...] = (RuntimeError, AssertionError)
# of torch's exporters, whatever in the model they meet; a full disk is none of these
_REFUSALS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    ArithmeticError,
)
_NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        num_bytes: its size.
        batches: numbers of images that it was compared with the model on.
        sizes: (height, width) of those images, in pixels.
        difference: the largest difference of an output, over the largest output.
        compared_on: the images in words.
    """

    path: Path
    num_bytes: int
    batches: tuple[int, ...]
    sizes: tuple[Size, ...]
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
    own: Size = (images.shape[-2], images.shape[-1])
    sizes: tuple[Size, ...] = (own,)
    if config.dynamic_size:
        _make_dynamic(model, config)
        sizes = (own, *_other_sizes(model, own))
    differences: list[float] = []
    batches = (1, len(images), len(images) + 1) if config.dynamic_batch else (1,)

    def write_and_compare(temporary: Path) -> None:
        try:
            with _quiet():
                program = _WRITERS[suffix](_program(model, images, sizes, config), temporary)
        except LocAtError:
            raise
        except _REFUSALS + _of_onnxruntime() as error:
            raise LocAtError(f"{config.model.name} cannot be exported to {suffix} ({_reason(error)})") from error
        differences.extend(_difference(model, program, _resized(images, size), batches, config) for size in sizes)

    atomic_write(config.output, write_and_compare)
    num_bytes = config.output.stat().st_size
    return Exported(config.output, num_bytes, batches, sizes, max(differences), told)


def _reason(error: BaseException) -> str:
    """What was behind it first, in short: exporters wrap that into advice to their authors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _make_dynamic(model: nn.Module, config: ExportConfig) -> None:
    """The model switched to take every size, if its program can: windows and their masks are traced for one size."""
    try:
        accept_any_size(model)
    except LocAtError as error:
        raise LocAtError(f"dynamic_size is True, but {error}: export one program for each size") from error
    if any(hasattr(module, "window_size") for module in model.modules()):
        raise LocAtError(
            f"dynamic_size is True, but {config.model.name} attends in windows, whose number and masks a program has "
            "for one size alone: leave it out, and export one program for each size (model.kwargs.img_size)"
        )


def _other_sizes(model: Any, own: Size) -> tuple[Size, ...]:
    """Two, of which the first is the example: neither is square or the model's own."""
    towers = towers_of(model)
    stem = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    patch = patch_size(towers[0][0]) if towers else getattr(stem, "patch_size", (_COARSEST_PATCH,) * 2)
    (height, width), (down, right) = own, patch
    return (height + down, width + 2 * right), (height + 3 * down, max(width - right, 2 * right))


def _resized(images: Tensor, size: Size) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)


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


def _program(
    model: nn.Module, images: Tensor, sizes: tuple[Size, ...], config: ExportConfig
) -> torch.export.ExportedProgram:
    dynamic: dict[int, Any] = {}
    if config.dynamic_batch:
        dynamic[0] = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    if config.dynamic_size:
        # an example of the model's own size would take the branches that are for it alone
        images = _resized(images, sizes[1])
        for axis, name in ((2, "height"), (3, "width")):
            dynamic[axis] = torch.export.Dim(name, min=1, max=_LARGEST_SIDE)
    return torch.export.export(
        model,
        (images if config.dynamic_batch else images[:1],),
        dynamic_shapes=(dynamic or None,),
        prefer_deferred_runtime_asserts_over_guards=config.dynamic_size,
    )


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> Program:
    written = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["outputs"], verbose=False)
    assert written is not None
    written.save(str(path), external_data=False)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _write_program(program: torch.export.ExportedProgram, path: Path) -> Program:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    loaded: Program = torch.export.load(buffer).module()
    return loaded


def _of_onnxruntime() -> tuple[type[Exception], ...]:
    """What onnxruntime raises, where it is installed: its exceptions have no base of their own."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    return tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))


_WRITERS: dict[str, Callable[[torch.export.ExportedProgram, Path], Program]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_program,
}


@torch.no_grad()
def _difference(
    model: nn.Module, program: Program, images: Tensor, batches: tuple[int, ...], config: ExportConfig
) -> float:
    """The largest relative difference, over batches that the example was not of, too.

    Raises:
        LocAtError: it is too large, or the program does not take such images.
    """
    images = torch.cat([images, images[:1]])
    largest = 0.0
    for count in batches:
        want = model(images[:count])
        try:
            got = program(images[:count])
        except _REFUSED_IMAGES + _of_onnxruntime() as error:
            height, width = images.shape[-2:]
            raise LocAtError(
                f"the program of {config.model.name} refuses {count} images of {height} x {width} pixels "
                f"({_reason(error)}); it was not kept. Choose the other format, or "
                "sizes and batches that do not change"
            ) from error
        largest = max(largest, ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item())
    if not largest <= config.tolerance:
        raise LocAtError(
            f"the program differs from {config.model.name} by {largest:.2g} of its largest output, and tolerance is "
            f"{config.tolerance:g}; it was not kept. Raise tolerance if that is enough, or choose the other format"
        )
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters report their progress and what they leave as it is."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
