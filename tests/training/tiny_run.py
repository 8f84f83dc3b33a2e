"""A small classification run, for the tests: in this process, or as a process of its own that may be killed.

``python tiny_run.py FOLDER`` runs ``train_tiny(FOLDER)`` on one thread. In the forward pass with the given
number, ``--kill-at`` ends the process, ``--full-at`` lets no file grow beyond 50 kB, as on a full disk, and
``--cut-at`` does so in such a way that the kernel ends the process in the middle of the write.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from locatvit.training.classification import train_classifier
from locatvit.training.config import ClassificationConfig
from locatvit.training.runtime import make_accelerator, seed_everything

NUM_CLASSES = 7
UPDATES_PER_EPOCH = 5
EPOCHS = 4
CONFIG = ClassificationConfig(
    epochs=EPOCHS, warmup_epochs=1.0, batch_size=6, lr=3e-3, ema_decay=0.9, checkpoint_every_updates=3
)


class ColourImages(Dataset[tuple[Tensor, int]]):
    """8 x 8 images whose class is their direction in colour space; noise by (seed, epoch, index)."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.colours = torch.randn(NUM_CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(11))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + 1009 * self.epoch + index)
        label = index % NUM_CLASSES
        return 2 * self.colours[label] + 0.5 * torch.randn(3, 8, 8, generator=generator), label


class EpochBatchSampler(Sampler[list[int]]):
    """Shuffles by epoch; the first ``skip`` batches are left out."""

    def __init__(self, length: int, batch_size: int) -> None:
        self.length, self.batch_size, self.drop_last = length, batch_size, True
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for batch in range(self.skip, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]


class EpochDataLoader(DataLoader[tuple[Tensor, Tensor]]):
    """The loader that ``fit`` asks for. Its workers' seed comes from the global generator, as is usual."""

    def __init__(self, dataset: ColourImages, batch_size: int, num_workers: int = 0) -> None:
        sampler = EpochBatchSampler(len(dataset), batch_size)
        super().__init__(dataset, batch_sampler=sampler, num_workers=num_workers)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        self.dataset.epoch = self.batch_sampler.epoch = epoch
        self.batch_sampler.skip = skip_batches


def tiny_model(num_classes: int = NUM_CLASSES) -> nn.Module:
    """A ViT of two blocks with stochastic depth and dropout, so that training draws random numbers."""
    seed_everything(5)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2,
        num_classes=num_classes, drop_path_rate=0.2, proj_drop_rate=0.1,
    )  # fmt: skip
    return model


def train_loader(num_workers: int = 0) -> EpochDataLoader:
    return EpochDataLoader(ColourImages(UPDATES_PER_EPOCH * 6 + 2), 6, num_workers)


def val_loader() -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(ColourImages(23, seed=1), batch_size=4)


def train_tiny(
    folder: Path,
    *,
    config: ClassificationConfig = CONFIG,
    before: Callable[[int], None] | None = None,
    num_workers: int = 0,
    **options: object,
) -> tuple[nn.Module, dict[str, float]]:
    """Train; ``before`` gets the number of each training forward pass of this process, from 1."""
    model, forwards = tiny_model(), 0

    def count(module: nn.Module, arguments: object) -> None:
        nonlocal forwards
        if module.training:
            forwards += 1
            if before is not None:
                before(forwards)

    model.register_forward_pre_hook(count)
    report = train_classifier(
        model, train_loader(num_workers), val_loader(), config, folder,
        num_classes=NUM_CLASSES, accelerator=make_accelerator(config.precision), **options,
    )  # fmt: skip
    return model, report.metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--cut-at", type=int)
    parser.add_argument("--full-at", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def before(forward: int) -> None:
        if forward == arguments.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if forward == arguments.cut_at:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if forward in (arguments.cut_at, arguments.full_at):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    train_tiny(arguments.folder, before=before)


if __name__ == "__main__":
    main()
