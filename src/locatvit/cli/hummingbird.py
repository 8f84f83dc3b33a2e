"""``locatvit hummingbird``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import read_options
from locatvit.recipes.hummingbird_config import HummingbirdRun

_EXAMPLES = """examples:
  the backbone of a training run, on CamVid:
    locatvit hummingbird --backbone runs/locatvit_tiny --data.name camvid --data.root CAMVID
  Table 4 of the paper, PASCAL VOC, with the authors' way of counting (Swin: the same command):
    locatvit hummingbird --model.name locatvit_tiny --model.pretrained true --protocol.protocol hummingbird_locat \\
        --data.name voc2012 --data.root VOCdevkit --data.train_options.train_list trainaug --run_dir runs/voc
  any timm model, any folder of images and masks, a small memory:
    locatvit hummingbird --model.name vit_small_patch16_224 --model.pretrained true \\
        --data.name folder --data.root photos --protocol.memory_size 100000

two protocols:
  hummingbird        what a user of the masks would get: predicted classes as they are, at the mask's own size, ratio
                     of the images kept, pixels without a label left out, mean over the classes that show.
  hummingbird_locat  the authors' code, to the letter, to compare with Table 4 alone: images squashed to a square and
                     measured there, predicted classes renamed for the best score (Hungarian matching, needs extra
                     data), unlabelled pixels a class in the memory, a mistyped std. Its mIoU is another quantity.
"""


def run(arguments: Sequence[str]) -> None:
    """Measure dense retrieval and print its result."""
    config, parsed = read_options(
        arguments, HummingbirdRun, "hummingbird",
        "Label each patch of the validation images by the nearest patches of the training images (Hummingbird), and "
        "measure the masks. Nothing is trained.",
        _EXAMPLES, resume="auto goes on with a run that was stopped; never",
    )  # fmt: skip

    from locatvit.cli.show import show_run
    from locatvit.recipes.hummingbird import hummingbird
    from locatvit.report.tables import per_class_table

    result = hummingbird(config, parsed.resume)
    changed = [f"not as the protocol has it: {name} {value}" for name, value in result.changed.items()]
    show_run(result, config.run_dir, "result.json, config.yaml", below=(per_class_table([result]), changed))
