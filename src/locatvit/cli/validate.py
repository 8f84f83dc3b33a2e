"""``locatvit validate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from locatvit.cli.options import make_parser, parse, refuse_two_models
from locatvit.recipes.config import TrainRun

_EXAMPLES = """examples:
  a finished run, on its own data:
    locatvit validate --run runs/locatvit_tiny
  published weights on an ImageNet folder (val/<class>/*):
    locatvit validate --model.name locatvit_tiny --model.pretrained true \\
        --data.name folder --data.root imagenet --data.label imagenet
"""


def run(arguments: Sequence[str]) -> None:
    """Measure a classifier and print its result."""
    parser = make_parser("validate", "Measure a classifier on the validation images.", _EXAMPLES)
    parser.add_argument(
        "--run",
        type=Path | None,
        default=None,
        help="folder of a finished training run: its model and settings",
    )
    parser.add_class_arguments(TrainRun, None)
    config, parsed = parse(parser, arguments, TrainRun)

    from locatvit.cli.show import show_results
    from locatvit.recipes.classification import validate
    from locatvit.training.runtime import is_main_process

    if parsed.run is not None:
        config = _of_run(parser, parsed.run, config, arguments)
    result = validate(config)
    if is_main_process():
        show_results([result])


def _of_run(parser: ArgumentParser, run_dir: Path, given: TrainRun, arguments: Sequence[str]) -> TrainRun:
    """The configuration of a run with its trained weights; the command line goes before it."""
    from locatvit.recipes.run import read_run_model
    from locatvit.results import CONFIG_FILE

    refuse_two_models(run_dir, given.model)
    model = read_run_model(run_dir)
    config, _ = parse(parser, ["--config", str(run_dir / CONFIG_FILE), *arguments], TrainRun)
    return replace(config, model=model)
