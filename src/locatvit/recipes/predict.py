"""Masks and overlays of photos, by a trained segmentation head."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from locatvit.data.decoding import UnreadableImage, decode_mask
from locatvit.data.photos import read_photo, read_stamp, write_mask
from locatvit.errors import LocAtError
from locatvit.recipes.predict_config import PredictConfig
from locatvit.recipes.predict_jobs import Job, check_masks, find_jobs, photo_digest, shown
from locatvit.recipes.segmenter import Segmenter, read_segmenter
from locatvit.report.overlays import class_shares, write_overlay
from locatvit.results import environment
from locatvit.storage import write_json
from locatvit.training.runtime import describe_device, make_accelerator

PREDICTIONS_FILE = "predictions.json"

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


def predict(config: PredictConfig) -> Predictions:
    """Write ``masks/NAME.png``, ``overlays/NAME.jpg`` and ``predictions.json``.

    A mask tells which head and which photo it was made of: what is there of the same two is not predicted again. How
    files are called, see ``find_jobs``.

    Raises:
        LocAtError: photos that are not there, or none that can be read; an output within a folder of photos, or with
            files of other photos; no finished segmentation run; more unreadable photos than ``max_bad_images``.
    """
    jobs = find_jobs(config)
    device = make_accelerator("no").device
    segmenter = read_segmenter(config.run, device, checkpoint=config.checkpoint)
    if not config.overwrite:
        check_masks(jobs)
    found: list[Prediction] = []
    bad = _BadPhotos(config.max_bad_images)
    for job in shown("predicting", jobs):
        try:
            found.append(_predict(config, job, segmenter))
        except UnreadableImage as error:
            bad.add(job.photo, error)
    if not found:
        raise LocAtError(f"none of the {len(jobs)} photos can be read; the first: {next(iter(bad.reasons.values()))}")
    predictions = Predictions(tuple(found), bad.reasons, config.output)
    write_json(config.output / PREDICTIONS_FILE, _record(config, segmenter, predictions, describe_device(device)))
    return predictions


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


def _predict(config: PredictConfig, job: Job, segmenter: Segmenter) -> Prediction:
    drawn = None if job.overlay is None else f"{config.overlay}, opacity {config.opacity:g}"
    stamp = {"photo": photo_digest(job.photo), "segmenter": segmenter.digest, "overlay": drawn}
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
