"""Masks and overlays of photos, by a trained segmentation head."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from locatvit.data.decoding import UnreadableImage, decode_mask
from locatvit.data.photos import find_photos, read_photo, read_stamp, write_mask
from locatvit.errors import LocAtError
from locatvit.recipes.predict_config import PredictConfig
from locatvit.recipes.segmenter import Segmenter, read_segmenter
from locatvit.report.overlays import class_shares, write_overlay
from locatvit.results import environment
from locatvit.storage import write_json
from locatvit.training.runtime import describe_device, make_accelerator

MASKS_FOLDER, OVERLAYS_FOLDER, PREDICTIONS_FILE = "masks", "overlays", "predictions.json"
_SECONDS_BETWEEN_LINES = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The outcome of one photo.

    Attributes:
        image: the photo, by the path that was given or found.
        mask: its mask's file, relative to the output.
        overlay: its overlay's file, likewise; None where none is written.
        size: (height, width) of photo and mask, in pixels.
        shares: class to its share of the pixels, for the classes that show.
        is_new: whether it was predicted now, and not before.
    """

    image: str
    mask: str
    overlay: str | None
    size: tuple[int, int]
    shares: dict[str, float]
    is_new: bool


@dataclass(frozen=True)
class Predictions:
    """What a folder of photos came to.

    Attributes:
        images: one a photo.
        skipped: path of an unreadable photo to the reason.
        output: the folder.
    """

    images: tuple[Prediction, ...]
    skipped: dict[str, str]
    output: Path


@dataclass(frozen=True)
class _Job:
    """A photo, and where its files go."""

    photo: Path
    mask: Path
    overlay: Path | None


def predict(config: PredictConfig) -> Predictions:
    """Write ``masks/NAME.png``, ``overlays/NAME.jpg`` and ``predictions.json``.

    A mask tells which head and which photo it was made of: what is there of the same two is not predicted again. Photos
    that share a name but for its ending (a.jpg, a.png) keep the ending in the names of their files (a.jpg.png).

    Raises:
        LocAtError: photos that are not there, or none that can be read; an output within a folder of photos, or with
            files of other photos; no finished segmentation run; more unreadable photos than ``max_bad_images``.
    """
    _check_apart(config)
    jobs = list(_jobs(config))
    device = make_accelerator("no").device
    segmenter = read_segmenter(config.run, device, checkpoint=config.checkpoint)
    if not config.overwrite:
        _check_masks([job for job in jobs if job.mask.exists()])
    found: list[Prediction] = []
    bad = _BadPhotos(config.max_bad_images)
    for job in _shown("predicting", jobs):
        try:
            found.append(_predict(config, job, segmenter))
        except UnreadableImage as error:
            bad.add(job.photo, error)
    if not found:
        raise LocAtError(f"none of the {len(jobs)} photos can be read; the first: {next(iter(bad.reasons.values()))}")
    predictions = Predictions(tuple(found), bad.reasons, config.output)
    write_json(config.output / PREDICTIONS_FILE, _record(config, segmenter, predictions, describe_device(device)))
    return predictions


def _check_apart(config: PredictConfig) -> None:
    """Neither may an output become a photo of the next time, nor a photo lie where outputs are written."""
    output = config.output.resolve()
    written = [output / MASKS_FOLDER, output / OVERLAYS_FOLDER]
    for place in config.images:
        inside = place.resolve()
        if inside.is_dir() and output.is_relative_to(inside):
            raise LocAtError(f"output is {config.output}, within the photos' folder {place}; give one outside of it")
        if any(inside.is_relative_to(folder) for folder in written):
            raise LocAtError(f"images is {place}, within the output {config.output}; give another output")


def _jobs(config: PredictConfig) -> Iterator[_Job]:
    photos = find_photos(config.images)
    for photo, stem in zip(photos, output_names(list(photos.values())), strict=True):
        overlay = config.output / OVERLAYS_FOLDER / f"{stem}.{config.overlay}" if config.overlay != "none" else None
        yield _Job(photo, config.output / MASKS_FOLDER / f"{stem}.png", overlay)


def output_names(names: list[str]) -> list[str]:
    """What files of photos are called, without an ending: different names, whatever the photos' are.

    A photo's name without its ending; with it where another photo has the same; with a number where that is taken too.
    Upper and lower case count as one, as some file systems have it.
    """
    plain = [str(PurePosixPath(name).with_suffix("")) for name in names]
    count = Counter(stem.casefold() for stem in plain)
    taken: set[str] = {stem.casefold() for stem in plain if count[stem.casefold()] == 1}
    chosen = []
    for name, stem in zip(names, plain, strict=True):
        if count[stem.casefold()] > 1:
            stem, number = name, 2
            while stem.casefold() in taken:
                stem, number = f"{name}-{number}", number + 1
            taken.add(stem.casefold())
        chosen.append(stem)
    return chosen


class _BadPhotos:
    """Counts unreadable photos, up to a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.reasons: dict[str, str] = {}

    def add(self, photo: Path, error: Exception) -> None:
        """Take note of one.

        Raises:
            LocAtError: it is one too many.
        """
        self.reasons[str(photo)] = str(error)
        if len(self.reasons) > self._most:
            raise LocAtError(
                f"unreadable photos: {len(self.reasons)}, more than max_bad_images {self._most}: "
                f"{', '.join(self.reasons)}; the last: {error}. Mend or remove them, or raise max_bad_images"
            ) from error
        _log.warning("%s (%d unreadable so far, %d allowed)", error, len(self.reasons), self._most)


def _check_masks(jobs: list[_Job]) -> None:
    """Before anything is written, that nothing foreign is in the way."""
    for job in _shown("checking", jobs):
        # a photo that cannot be read is named when its turn comes
        with contextlib.suppress(UnreadableImage):
            if (read_stamp(job.mask) or {}).get("photo") != _photo_digest(job.photo):
                raise LocAtError(
                    f"{job.mask} is there and was not made of the photo {job.photo} as it is now; give another "
                    "--output, or --overwrite"
                )


def _photo_digest(photo: Path) -> str:
    try:
        with photo.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UnreadableImage(f"image {photo} cannot be read: {error.strerror}") from error


def _predict(config: PredictConfig, job: _Job, segmenter: Segmenter) -> Prediction:
    drawn = None if job.overlay is None else f"{config.overlay}, opacity {config.opacity:g}"
    stamp = {"photo": _photo_digest(job.photo), "segmenter": segmenter.digest, "overlay": drawn}
    is_there = job.mask.exists() and (job.overlay is None or job.overlay.exists())
    is_done = is_there and not config.overwrite and read_stamp(job.mask) == stamp
    if is_done:
        mask = decode_mask(job.mask)
    else:
        image = read_photo(job.photo, config.max_megapixels)
        mask = segmenter.predict(image).astype(np.uint8)
        if job.overlay is not None:
            pixels = np.asarray(image)
            write_overlay(job.overlay, pixels, mask, segmenter.classes, segmenter.colours, config.opacity)
        # the mask is the last: where it is, all is
        write_mask(job.mask, mask, segmenter.colours, stamp)
    shares = zip(segmenter.classes, class_shares(mask, len(segmenter.classes)), strict=True)
    return Prediction(
        str(job.photo),
        job.mask.relative_to(config.output).as_posix(),
        None if job.overlay is None else job.overlay.relative_to(config.output).as_posix(),
        (mask.shape[0], mask.shape[1]),
        {name: share for name, share in shares if share},
        not is_done,
    )


def _record(config: PredictConfig, segmenter: Segmenter, predictions: Predictions, device: str) -> dict[str, Any]:
    """What ``predictions.json`` holds."""
    result = segmenter.result
    return {
        "run": config.run.resolve().name,
        "protocol": result.protocol,
        "model": result.model,
        "data": result.data,
        "metrics": result.metrics,
        "head": segmenter.head_digest,
        "segmenter": segmenter.digest,
        "environment": environment(device),
        "classes": list(segmenter.classes),
        "colours": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in segmenter.colours],
        "images": [
            {
                "image": one.image,
                "mask": one.mask,
                "overlay": one.overlay,
                "height": one.size[0],
                "width": one.size[1],
                "shares": one.shares,
            }
            for one in predictions.images
        ],
        "skipped": predictions.skipped,
    }


def _shown(description: str, jobs: list[_Job]) -> Iterator[_Job]:
    """The jobs, and how far they are: a bar on a terminal, now and then a line elsewhere."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
    with bar:
        for done, job in enumerate(bar.track(jobs, description=description)):
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
                console.print(f"{description}: {done}/{len(jobs)} photos", highlight=False)
            yield job
