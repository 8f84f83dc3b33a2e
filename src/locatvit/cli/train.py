"""``locatvit train``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import read_options
from locatvit.recipes.config import TrainRun

_EXAMPLES = """examples:
  the paper's ViT-Tiny + LocAt on an ImageNet folder (train/<class>/*, val/<class>/*):
    locatvit train --model.name locatvit_tiny --model.kwargs.drop_path_rate 0.1 --training.precision fp16 \\
        --data.name folder --data.root imagenet --data.label imagenet --run_dir runs/locatvit_tiny
  the same without LocAt:
    locatvit train --model.name vit_tiny_patch16_224 ... --run_dir runs/vit_tiny
  GAug only:
    locatvit train --model.locat.prr false ...
  the paper's Jumbo-Tiny, which learns from a teacher:
    locatvit train --model.name locatjumbo_tiny --distillation.teacher deit3_base_patch16_224 \\
        --distillation.normalisation student ...
  several GPUs:
    accelerate launch -m locatvit train ...
A run that was stopped goes on by the same command; --resume never starts it anew.
"""


def run(arguments: Sequence[str]) -> None:
    """Train a classifier and print its result."""
    config, parsed = read_options(
        arguments, TrainRun, "train", "Train a classifier, with LocAt or without. Defaults: the paper's recipe.",
        _EXAMPLES, resume="auto, never, or a checkpoint's path",
    )  # fmt: skip

    from locatvit.cli.show import show_run
    from locatvit.recipes.classification import train

    show_run(
        train(config, parsed.resume), config.run_dir, "model.safetensors, result.json, metrics.jsonl, config.yaml",
        f"locatvit segment --backbone {config.run_dir} --data.name camvid --data.root CAMVID",
    )  # fmt: skip
