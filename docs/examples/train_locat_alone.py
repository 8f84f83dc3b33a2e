"""An existing model, LocAt added, only LocAt and the head trained for a few steps on CIFAR-100, saved, loaded.

    python docs/examples/train_locat_alone.py CIFAR100_FOLDER

The model begins as it was: start="identity". Take pretrained=True where the hub can be reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from torch.nn import functional as F

import locatvit
from locatvit.data import open_dataset
from locatvit.data.config import ClassificationAugment
from locatvit.data.transforms import classification_transform


def main(cifar100: Path, folder: Path = Path("runs/locat_alone"), steps: int = 20, image_size: int = 64) -> None:
    """Train, save, load, compare."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=image_size, patch_size=8, num_classes=100)
    images, labels = _batch(cifar100, image_size, count=32)
    before = model.eval()(images)

    locatvit.add_locat(model, locatvit.LocAtConfig(start="identity"))
    print(f"outputs before training differ by {(model(images) - before).abs().max():.1e}")

    learning = locatvit.freeze_host(model)
    print(f"{len(learning)} of {len(list(model.parameters()))} tensors learn")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, steps - 1):
            print(f"step {step}: loss {loss.item():.3f}")

    locatvit.save_pretrained(model, folder)
    again = locatvit.load_pretrained(folder).eval()
    with torch.no_grad():
        print(f"saved and loaded, outputs equal: {torch.equal(again(images), model.eval()(images))}")


def _batch(cifar100: Path, image_size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    transform = classification_transform(ClassificationAugment(image_size=image_size), training=False)
    data = open_dataset("cifar100", task="classification", split="train", root=cifar100, transform=transform)
    images, labels = zip(*(data[index] for index in range(count)), strict=True)
    return torch.stack(images), torch.tensor(labels)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
