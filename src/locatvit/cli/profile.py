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
  which implementation of the attention runs, and why not the others; also for a device that is not here:
    locatvit profile --backends --model.name locatswin_tiny --precision bf16 --backward true --device cuda
  the paper's "#Params" and "FLOPs", all 20 rows of Table 1, beside ours (nothing is run; seconds):
    locatvit profile --paper

what the numbers mean:
  parameters      all of the model's, its head's too.
  multiply-adds   of matrix products and convolutions for one image, attention included: what papers call
                  FLOPs (a library that counts additions apart gives twice as much). Softmax, exponentials
                  and norms count nothing.
  images/s        plain and LocAt take turns, so that a busy machine slows both alike; the median turn, and
                  the range of the middle half of the turns. Noise in, no data loading. On a CPU the process
                  keeps most memory that is let go, or chance would decide who pays for page faults.
  peak memory     of model, images and step together; on a CPU of a new process above its start.
  LocAt / plain   what LocAt costs: new parameters; a share of multiply-adds and memory above 1, of images/s below 1.
"""


def run(arguments: Sequence[str]) -> None:
    """Print the costs of a model, plain and with LocAt; its backends; or the costs of the paper's Table 1."""
    parser = make_parser(
        "profile",
        "Set side by side what a model costs with LocAt and without: parameters, multiply-adds, images a second "
        "and peak memory on this machine.",
        _EXAMPLES,
    )
    parser.add_class_arguments(ProfileConfig, None)
    parser.add_argument("--paper", action="store_true", help="count the models of the paper's Table 1 instead")
    parser.add_argument(
        "--backends", action="store_true", help="tell which backends of the op can serve the model, and measure nothing"
    )
    parser.add_argument(
        "--device", type=str | None, default=None, help="with --backends: cpu, cuda, ..., be it here or not"
    )
    parser.add_argument("--output", type=Path | None, default=None, help="a JSON file to write all numbers to")
    config, parsed = parse(parser, arguments, ProfileConfig)
    _check(config, parsed)
    if parsed.paper:
        table, notes, numbers = _paper()
    elif parsed.backends:
        table, notes, numbers = _backends(config, parsed.device)
    else:
        table, notes, numbers = _profile(config)
    from locatvit.cli.show import show_table

    show_table(table, notes)
    if parsed.output is not None:
        from locatvit.storage import write_json

        write_json(parsed.output, numbers)
        print(f"written: {parsed.output}")


def _check(config: ProfileConfig, parsed: Any) -> None:
    """Refuse options that would have no effect."""
    if parsed.paper:
        _check_paper(config)
    if parsed.paper and parsed.backends:
        raise LocAtError("--paper counts models and --backends asks one for its backends; leave one of them out")
    if parsed.device is not None and not parsed.backends:
        raise LocAtError(
            f"--device is {parsed.device!r} but costs are measured on the present device; leave it out, or give "
            "--backends, which asks about any device"
        )
    if parsed.backends and config.seconds != ProfileConfig().seconds:
        raise LocAtError(f"--seconds is {config.seconds:g} but --backends measures nothing; leave one of them out")


def _check_paper(config: ProfileConfig) -> None:
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
    from locatvit.analysis import allocator
    from locatvit.recipes.profile import profile
    from locatvit.recipes.profile_tables import profile_table

    allocator.keep()
    found = profile(config)
    return *profile_table(found), asdict(found)


def _backends(config: ProfileConfig, device: str | None) -> tuple[Table, list[str], dict[str, Any]]:
    from locatvit.recipes.profile_backends import profile_backends
    from locatvit.recipes.profile_tables import backends_table

    found = profile_backends(config, device)
    return *backends_table(found), found.as_data()


def _paper() -> tuple[Table, list[str], dict[str, Any]]:
    from locatvit.recipes.paper_costs import paper_costs, paper_costs_table
    from locatvit.results import environment

    costs = paper_costs()
    return *paper_costs_table(costs), {"rows": [asdict(cost) for cost in costs], "environment": environment("none")}
