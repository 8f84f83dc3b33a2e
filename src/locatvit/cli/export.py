"""``locatvit export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from locatvit.cli.options import make_parser, parse, refuse_two_models
from locatvit.recipes.export_config import ExportConfig

_EXAMPLES = """examples:
  a finished run, as ONNX, compared with the model on real images:
    locatvit export --run runs/locatvit_tiny --output locatvit_tiny.onnx --images imagenet/val
  for images of any size, compared with the model at three:
    locatvit export --run runs/locatvit_tiny --output locatvit_tiny.onnx --dynamic_size true
  published weights, for torch.export.load:
    locatvit export --model.name locatvit_tiny --model.pretrained true --output locatvit_tiny.pt2
"""


def run(arguments: Sequence[str]) -> None:
    """Export a model and print how it compares."""
    parser = make_parser(
        "export",
        "Write a model as a program of its own, ONNX or torch.export, and compare it with the model.",
        _EXAMPLES,
    )
    parser.add_argument("--run", type=Path | None, default=None, help="folder of a finished training run: its model")
    parser.add_class_arguments(ExportConfig, None)
    config, parsed = parse(parser, arguments, ExportConfig)

    from locatvit.recipes.export import export
    from locatvit.recipes.run import read_run_model

    if parsed.run is not None:
        refuse_two_models(parsed.run, config.model)
        config = replace(config, model=read_run_model(parsed.run))
    found = export(config)
    sizes = " and ".join(f"{height} x {width}" for height, width in found.sizes)
    print(
        f"written: {found.path} ({found.num_bytes / 2**20:.1f} MiB). Compared with the model on {found.compared_on}, "
        f"{', '.join(map(str, found.batches))} images of {sizes} pixels at a time: outputs differ by "
        f"{found.difference:.1e} of the most"
    )
