"""A folder of a model, loaded, compiled and compared with the model itself on real images; then timed beside it.

    python docs/examples/serve_compiled.py FOLDER IMAGES [--device cuda]

FOLDER is what locatvit.save_pretrained writes (or "hf-hub:owner/name"), IMAGES a folder of photos. Every batch has one
size, so one graph serves all; for programs that take images of every size see `locatvit export --dynamic_size true`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import locatvit
from locatvit.data.config import ClassificationAugment
from locatvit.data.transforms import classification_transform

MOST_IMAGES = 16


def main(folder: str, images: Path, device: str = "cpu", turns: int = 10, tolerance: float = 1e-3) -> float:
    """Load, compile, compare, time; returns the compiled model's time over the model's."""
    model = locatvit.load_pretrained(folder).eval().to(device)
    batch = _batch(model, images).to(device)
    compiled = torch.compile(model, fullgraph=True)  # one graph or an error: nothing falls back in silence

    with torch.inference_mode():
        want, got = model(batch), compiled(batch)
        difference = ((got - want).abs().max() / want.abs().max()).item()
        agree = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
        print(f"{len(batch)} images: outputs differ by {difference:.1e} of the largest; same class for {agree:.0%}")
        if difference > tolerance:
            raise SystemExit(f"the compiled model differs by more than {tolerance:g}; serve the model as it is")
        ratio = _ratio(lambda: compiled(batch), lambda: model(batch), turns, device)
    print(f"time of the compiled model over the model's, median of {turns} turns: {ratio:.2f}")
    return ratio


def _batch(model: nn.Module, folder: Path) -> Tensor:
    """Some images of a folder, as the model wants them."""
    told = model.pretrained_cfg
    side = getattr(model, "patch_embed", None)
    height, width = side.img_size if side is not None and side.img_size else told["input_size"][-2:]
    assert height == width, "this example resizes to squares"
    augment = ClassificationAugment(
        image_size=height, crop_fraction=told["crop_pct"], mean=tuple(told["mean"]), std=tuple(told["std"])
    )
    transform = classification_transform(augment, training=False)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not paths:
        raise SystemExit(f"{folder} has no images")
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[:MOST_IMAGES]])


def _ratio(one: Callable[[], Tensor], other: Callable[[], Tensor], turns: int, device: str) -> float:
    """Median of the times of the first over the second, by turns: what else the machine does meets both."""
    ratios = []
    for _ in range(turns):
        first, second = (_seconds(step, device) for step in (one, other))
        ratios.append(first / second)
    return statistics.median(ratios)


def _seconds(step: Callable[[], Tensor], device: str) -> float:
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("images", type=Path)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    main(given.folder, given.images, given.device)
