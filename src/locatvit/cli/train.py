"""``locatvit train``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import make_parser, parse
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
    parser = make_parser("train", "Train a classifier, with LocAt or without. Defaults: the paper's recipe.", _EXAMPLES)
    parser.add_class_arguments(TrainRun, None)
    parser.add_argument("--resume", type=str, default="auto", help="auto, never, or a checkpoint's path")
    config, parsed = parse(parser, arguments, TrainRun)

    from locatvit.cli.show import show_results
    from locatvit.recipes.classification import train
    from locatvit.training.runtime import is_main_process

    result = train(config, parsed.resume)
    if not is_main_process():
        return
    show_results([result])
    print(f"in {config.run_dir}: model.safetensors, result.json, metrics.jsonl, config.yaml")
    print(f"next: locatvit segment --backbone {config.run_dir} --data.name camvid --data.root CAMVID")
