"""Converting images, one by one or in worker processes. Every file appears whole or not at all."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from locatvit.data.decoding import image_size
from locatvit.data.prepare import MAX_WORKERS
from locatvit.data.prepare.plan import Item, Plan
from locatvit.errors import LocAtError
from locatvit.storage import atomic_write, write_bytes

_MOST_BY_DEFAULT = 8
_CHUNK = 16
_CHUNKS_WAITING = 4
"""A worker: so few are handed out ahead, so that a long list is not copied into the queue."""


@dataclass(frozen=True)
class Conversion:
    """What every worker knows.

    Attributes:
        read, train_ids, other: see ``Plan``.
        title: of the data set, for messages.
        folder: the prepared one; None checks and writes nothing.
    """

    read: Callable[[Any], Integer[np.ndarray, "H W"]]
    train_ids: Mapping[int, int]
    other: int | None
    title: str
    folder: Path | None


def default_workers() -> int:
    """One a core that this process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_BY_DEFAULT, cores)


def convert_all(
    plan: Plan, items: Sequence[Item], folder: Path | None, num_workers: int, on_progress: Callable[[int, int], None]
) -> None:
    """Convert items.

    Raises:
        LocAtError: ``num_workers`` out of range, or the first image that cannot be converted; what is done stays.
    """
    if not 0 <= num_workers <= MAX_WORKERS:
        raise LocAtError(f"num_workers is {num_workers}; it must be 0 to {MAX_WORKERS}")
    title = plan.name if plan.known is None else plan.known.title
    work = Conversion(plan.read, dict(plan.train_ids), plan.other, title, folder)
    done = 0
    for count in _in_processes(work, items, num_workers) if num_workers else _here(work, items):
        done += count
        on_progress(done, len(items))


def _here(work: Conversion, items: Sequence[Item]) -> Iterator[int]:
    for item in items:
        convert(work, item)
        yield 1


def _in_processes(work: Conversion, items: Sequence[Item], num_workers: int) -> Iterator[int]:
    chunks = iter([items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)])
    # a process that is forked would inherit the locks of this one's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_ignore_interrupts) as pool:
        waiting: set[Future[int]] = set()
        try:
            while True:
                while len(waiting) < num_workers * _CHUNKS_WAITING and (chunk := next(chunks, None)):
                    waiting.add(pool.submit(_convert_chunk, work, chunk))
                if not waiting:
                    return
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    # the parent is interrupted too, and ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _convert_chunk(work: Conversion, items: Sequence[Item]) -> int:
    for item in items:
        convert(work, item)
    return len(items)


def convert(work: Conversion, item: Item) -> None:
    """Map one image's labels and compare sizes; with a folder, write the mask and link the image.

    Raises:
        LocAtError: an image or a mask that cannot be read, labels that are none of the data set's, sizes that
            differ, or a folder that cannot be written.
    """
    mask = map_labels(work.read(item.labels), work, item)
    height, width = image_size(item.image)
    if mask.shape != (height, width):
        raise LocAtError(
            f"image {item.image} is {height}x{width} (height x width) and its mask {item.source} "
            f"{mask.shape[0]}x{mask.shape[1]}; the two must have one size"
        )
    if work.folder is None:
        return
    image_path, mask_path = targets(item, work.folder)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    write_bytes(mask_path, buffer.getvalue())
    link(item.image, image_path)


def map_labels(labels: Integer[np.ndarray, "H W"], work: Conversion, item: Item) -> UInt8[np.ndarray, "H W"]:
    """Official numbers to prepared values.

    Raises:
        LocAtError: a number that the data set does not have.
    """
    found, places = np.unique(labels, return_inverse=True)
    values = [work.train_ids.get(int(number), work.other) for number in found]
    if None in values:
        wrong = int(found[values.index(None)])
        raise LocAtError(
            f"mask {item.source} has the value {wrong}, which official masks of {work.title} have not: theirs are "
            f"{_ranges(work.train_ids)}. Was it converted before? Take the files as they were downloaded"
        )
    return np.array(values, dtype=np.uint8)[places].reshape(labels.shape)


def _ranges(numbers: Mapping[int, int]) -> str:
    """``"0 to 18, 255"``, short."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join(" to ".join(map(str, part)) for part in parts)


def targets(item: Item, folder: Path) -> tuple[Path, Path]:
    """The prepared image and mask of an item."""
    return (
        folder / "images" / item.split / f"{item.name}{item.image.suffix.lower()}",
        folder / "annotations" / item.split / f"{item.name}.png",
    )


def is_done(item: Item, folder: Path) -> bool:
    """Whether both are there; the image is linked last."""
    return all(path.is_file() for path in targets(item, folder))


def link(source: Path, target: Path) -> None:
    """A second name for an image file; where the disk has no such thing, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        atomic_write(target, lambda temporary: shutil.copyfile(source, temporary))
