"""``locatvit validate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from locatvit.cli.options import make_parser, parse
from locatvit.recipes.config import TrainRun

_EXAMPLES = """examples:
  a finished run, on its own data:
    locatvit validate --run runs/locatvit_tiny
  published weights on an ImageNet folder:
    locatvit validate --model.name locatvit_tiny --model.pretrained true --data.name folder --data.root imagenet
"""


def run(arguments: Sequence[str]) -> None:
    """Measure a classifier and print its result."""
    parser = make_parser("validate", "Measure a classifier on the validation images.", _EXAMPLES)
    parser.add_argument("--run", type=Path | None, default=None, help="folder of a finished training run")
    parser.add_class_arguments(TrainRun, None)
    config, parsed = parse(parser, arguments, TrainRun)

    from locatvit.cli.show import show_results
    from locatvit.recipes.classification import validate
    from locatvit.recipes.run import read_run_model
    from locatvit.results import CONFIG_FILE

    if parsed.run is not None:
        model = read_run_model(parsed.run)
        saved = ["--config", str(parsed.run / CONFIG_FILE)]
        config, _ = parse(parser, [*saved, *arguments], TrainRun)
        config = replace(config, model=model)
    show_results([validate(config)])
