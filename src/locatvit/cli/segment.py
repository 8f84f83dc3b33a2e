"""``locatvit segment``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import read_options
from locatvit.recipes.config import SegmentRun

_EXAMPLES = """examples:
  the backbone of a training run, on CamVid, by the paper's protocol:
    locatvit segment --backbone runs/locatvit_tiny --data.name camvid --data.root CAMVID --run_dir runs/camvid
  any timm model; a transformers model, by the linear protocol of DINOv2 and DINOv3:
    locatvit segment --model.name vit_small_patch16_224 --model.pretrained true \\
        --data.name ade20k --data.root ADE20K --run_dir runs/ade20k
    locatvit segment --model.name hf/facebook/dinov2-small --model.pretrained true --protocol.protocol linear \\
        --augment.mean '[0.485, 0.456, 0.406]' --augment.std '[0.229, 0.224, 0.225]' \\
        --data.name ade20k --data.root ADE20K --run_dir runs/ade20k_linear
  in minutes on a CPU: every image is shown to the backbone once, and its features are kept for other runs too:
    locatvit segment --backbone runs/locatvit_tiny --data.name camvid --data.root CAMVID --run_dir runs/quick \\
        --augment.random false --cache.dir features --protocol.num_updates 600

protocols, named and frozen; what is null among the options is theirs:
  locat   the paper's. Raw last block; 1x1 to 512, GroupNorm, GELU, 1x1; 20,000 updates of 32 crops of 512 (PASCAL
          Context: 480); the test sees whole images of short side 512 (there: long side 520); ImageNet's mean and
          std for every model.
  linear  DINOv2's and DINOv3's. Last block after the final norm; batch norm, 1x1; 40,000 updates of 16 crops of 512;
          the test slides a window of 512 by 341 over images of short side 512; the model's own mean and std.
A setting that you change is named in the result ("locat, changed: num_updates 600"), which then does not compare
with published figures. Measured over the whole set: mIoU, IoU of each class, pixel accuracy, boundary IoU.

Data: those of `locatvit data prepare`, or any folder with images/{train,val}, annotations/{train,val} (8-bit PNG,
255 is ignored) and classes.txt.
"""


def run(arguments: Sequence[str]) -> None:
    """Train and measure a segmentation head and print its result."""
    config, parsed = read_options(
        arguments, SegmentRun, "segment",
        "Train a segmentation head on a frozen backbone and measure it. Default: the paper's protocol, locat.",
        _EXAMPLES, resume="auto, never, or a checkpoint's path",
    )  # fmt: skip

    from locatvit.cli.show import show_run
    from locatvit.recipes.segmentation import segment

    sheets = ", sheets/" if config.sheets else ""
    show_run(
        segment(config, parsed.resume), config.run_dir,
        f"head.safetensors, result.json, metrics.jsonl, config.yaml{sheets}",
    )  # fmt: skip
