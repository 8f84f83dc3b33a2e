"""The command line on something so small that a run takes a second or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locatvit.cli.main import main

MODEL = ("--model.kwargs", "{img_size: 32, patch_size: 8, depth: 2, embed_dim: 24, num_heads: 2}")
SCENES = (
    "--data.name", "scenes",
    "--data.train_options", "{num_images: 48, image_size: 32, cache: true}",
    "--data.val_options", "{num_images: 12, image_size: 32, cache: true}",
)  # fmt: skip
TRAINING = (
    "--augment.image_size", "32", "--training.epochs", "2", "--training.warmup_epochs", "1",
    "--training.batch_size", "16", "--training.num_workers", "0",
)  # fmt: skip
HEAD = (
    "--augment.short_side", "32", "--augment.crop_size", "[32, 32]", "--protocol.num_updates", "6",
    "--protocol.batch_size", "8", "--protocol.num_workers", "0",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command came to: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refused command, without its head."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert [line.startswith("locatvit: error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("locatvit: error: ")


@contextmanager
def one_thread() -> Iterator[None]:
    """Such small tensors gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Command:
    """Runs verbs in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Answer:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = self._capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    def refused(self, *arguments: object) -> str:
        """The message of a command that is refused before anything is computed: all that is printed."""
        answer = self(*arguments)
        assert len(answer.err.splitlines()) == 1
        assert answer.out == ""
        return answer.error


def train(run_dir: Path, *more: object, model: Sequence[str] = MODEL, data: Sequence[str] = SCENES) -> tuple:
    """The arguments of a tiny training."""
    return ("train", "--run_dir", run_dir, *model, *data, *TRAINING, *more)


def segment(run_dir: Path, *more: object, data: Sequence[str] = SCENES) -> tuple:
    """The arguments of a tiny segmentation."""
    return ("segment", "--run_dir", run_dir, *data, *HEAD, *more)


def image(seed: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """Coloured noise; ``size`` is (height, width)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def image_folder(root: Path, per_class: int = 6) -> Path:
    """An image folder of two classes for training and validation."""
    for split, count in (("train", per_class), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image(hash((split, name, number)) % 1000).save(root / split / name / f"{number}.jpg")
    return root


def mask_folder(root: Path, classes: Sequence[str], count: int = 6, size: tuple[int, int] = (40, 48)) -> Path:
    """A segmentation folder; every mask has all classes, in columns, and some ignored pixels."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    height, width = size
    mask = np.tile(np.arange(width) * len(classes) // width, (height, 1)).astype(np.uint8)
    mask[:3] = 255
    for split, number in (("train", count), ("val", 2)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for index in range(number):
            image(index, size).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
