"""``locatvit segment``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import make_parser, parse
from locatvit.recipes.config import SegmentRun

_EXAMPLES = """examples:
  the backbone of a training run, on CamVid:
    locatvit segment --backbone runs/locatvit_tiny --data.name camvid --data.root CAMVID --run_dir runs/camvid
  any timm model:
    locatvit segment --model.name vit_small_patch16_224 --model.pretrained true \\
        --data.name folder --data.root ade20k --data.label ade20k --run_dir runs/ade20k
The folder's layout: images/{train,val}, annotations/{train,val}, classes.txt; 255 in a mask is ignored.
"""


def run(arguments: Sequence[str]) -> None:
    """Train and measure a segmentation head and print its result."""
    parser = make_parser(
        "segment",
        "Train a segmentation head on a frozen backbone and measure it. Defaults: the paper's protocol.",
        _EXAMPLES,
    )
    parser.add_class_arguments(SegmentRun, None)
    parser.add_argument("--resume", type=str, default="auto", help="auto, never, or a checkpoint's path")
    config, parsed = parse(parser, arguments, SegmentRun)

    from locatvit.cli.show import show_results
    from locatvit.recipes.segmentation import segment
    from locatvit.training.runtime import is_main_process

    result = segment(config, parsed.resume)
    if not is_main_process():
        return
    show_results([result])
    print(f"in {config.run_dir}: head.safetensors, result.json, metrics.jsonl, config.yaml")
    print(f"next: locatvit report {config.run_dir} OTHER_RUNS... --output report.html")
