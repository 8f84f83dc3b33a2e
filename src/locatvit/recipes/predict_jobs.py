"""Which photos are predicted, and where their files go: never into each other's place, nor that of foreign ones."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from locatvit.data.decoding import UnreadableImage
from locatvit.data.photos import find_photos, read_stamp
from locatvit.errors import LocAtError
from locatvit.recipes.predict_config import PredictConfig
from locatvit.training.display import Bar

MASKS_FOLDER, OVERLAYS_FOLDER = "masks", "overlays"
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Job:
    """A photo, and where its files go."""

    photo: Path
    mask: Path
    overlay: Path | None


def find_jobs(config: PredictConfig) -> list[Job]:
    """A job for each photo.

    Photos that share a name but for its ending (a.jpg, a.png) keep the ending in the names of their files (a.jpg.png).

    Raises:
        LocAtError: photos that are not there; an output within a folder of photos, or photos within the output.
    """
    _check_apart(config)
    photos = find_photos(config.images)
    jobs = []
    for photo, stem in zip(photos, output_names(list(photos.values())), strict=True):
        overlay = config.output / OVERLAYS_FOLDER / f"{stem}.{config.overlay}" if config.overlay != "none" else None
        jobs.append(Job(photo, config.output / MASKS_FOLDER / f"{stem}.png", overlay))
    return jobs


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


def check_masks(jobs: list[Job]) -> None:
    """Before anything is written, that nothing foreign is in the way.

    Raises:
        LocAtError: a mask is there that was made of another photo, or by somebody else.
    """
    for job in shown("checking", [job for job in jobs if job.mask.exists()]):
        # a photo that cannot be read is named when its turn comes
        with contextlib.suppress(UnreadableImage):
            if (read_stamp(job.mask) or {}).get("photo") != photo_digest(job.photo):
                raise LocAtError(
                    f"{job.mask} is there and was not made of the photo {job.photo} as it is now; give another "
                    "--output, or --overwrite"
                )


def photo_digest(photo: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a photo's file.

    Raises:
        UnreadableImage: it cannot be read.
    """
    try:
        with photo.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UnreadableImage(f"image {photo} cannot be read: {error.strerror}") from error


def shown(description: str, jobs: list[Job]) -> Iterator[Job]:
    """The jobs, and how far they are: a bar on a terminal, now and then a line elsewhere."""
    with Bar(seconds=_SECONDS_BETWEEN_LINES) as bar:
        bar.add(description, len(jobs))
        for done, job in enumerate(jobs, start=1):
            yield job
            bar.move(done, f"{description}: {done}/{len(jobs)} photos")
