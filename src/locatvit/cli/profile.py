"""``locatvit profile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locatvit.cli.options import make_parser, parse
from locatvit.errors import LocAtError
from locatvit.recipes.profile_config import ProfileConfig, ProfileModel

if TYPE_CHECKING:
    from locatvit.report.tables import Table

_EXAMPLES = """examples:
  ViT-Tiny with LocAt beside timm's ViT-Tiny, on this machine:
    locatvit profile --model.name locatvit_tiny
  any timm model at 512 pixels, training too, kept as JSON:
    locatvit profile --model.name vit_small_patch16_224 --image_size 512 --backward true --output cost.json
  models that are made for 512 pixels, and resample nothing:
    locatvit profile --model.name locatvit_small_rope_mixed --model.kwargs.img_size 512
  GAug alone:
    locatvit profile --model.locat.prr false
  the paper's "#Params" and "FLOPs", all 20 rows of Table 1, beside ours (nothing is run; seconds):
    locatvit profile --paper

what the numbers mean:
  parameters      all of the model's, its head's too.
  multiply-adds   of matrix products and convolutions for one image, attention included: what papers call
                  FLOPs (a library that counts additions apart gives twice as much). Softmax, exponentials
                  and norms count nothing.
  images/s        plain and LocAt take turns, so that a busy machine slows both alike; the median turn, and
                  the range of the middle half of the turns. Noise in, no data loading.
  peak memory     of model, images and step together; on a CPU of a new process above its start.
  LocAt / plain   what LocAt costs: new parameters; a share of multiply-adds and memory above 1, of images/s below 1.
"""


def run(arguments: Sequence[str]) -> None:
    """Print the costs of a model, plain and with LocAt, or those of the paper's Table 1."""
    parser = make_parser(
        "profile",
        "Set side by side what a model costs with LocAt and without: parameters, multiply-adds, images a second "
        "and peak memory on this machine.",
        _EXAMPLES,
    )
    parser.add_class_arguments(ProfileConfig, None)
    parser.add_argument("--paper", action="store_true", help="count the models of the paper's Table 1 instead")
    parser.add_argument("--output", type=Path | None, default=None, help="a JSON file to write all numbers to")
    config, parsed = parse(parser, arguments, ProfileConfig)
    if parsed.paper:
        _refuse_options(config)
    table, notes, numbers = _paper() if parsed.paper else _profile(config)
    from locatvit.cli.show import show_table

    show_table(table, notes)
    if parsed.output is not None:
        from locatvit.storage import write_json

        write_json(parsed.output, numbers)
        print(f"written: {parsed.output}")


def _refuse_options(config: ProfileConfig) -> None:
    usual = _options(ProfileConfig())
    given = [name for name, value in _options(config).items() if value != usual[name]]
    if given:
        raise LocAtError(
            f"--paper counts the models of the paper's Table 1 and measures nothing, and --{given[0]} is given too; "
            "leave one of them out"
        )


def _options(config: ProfileConfig) -> dict[str, Any]:
    model = {f"model.{name}": value for name, value in asdict(config.model).items()}
    return {**model, **asdict(replace(config, model=ProfileModel()))}


def _profile(config: ProfileConfig) -> tuple[Table, list[str], dict[str, Any]]:
    from locatvit.recipes.profile import profile
    from locatvit.recipes.profile_tables import profile_table

    found = profile(config)
    return *profile_table(found), asdict(found)


def _paper() -> tuple[Table, list[str], dict[str, Any]]:
    from locatvit.recipes.paper_costs import paper_costs, paper_costs_table
    from locatvit.results import environment

    costs = paper_costs()
    return *paper_costs_table(costs), {"rows": [asdict(cost) for cost in costs], "environment": environment("none")}

