"""``locatvit quickstart``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import read_options
from locatvit.recipes.quickstart_config import QuickstartConfig

_EXAMPLES = """examples:
  the five-minute comparison:
    locatvit quickstart
  each half of LocAt too, over two seeds:
    locatvit quickstart --variants '["vit", "gaug", "prr", "locatvit"]' --seeds '[0, 1]' --run_dir runs/ablation
Stopped, it goes on by the same command.
"""


def run(arguments: Sequence[str]) -> None:
    """Train, compare, write the page, and say where it is."""
    config, _ = read_options(
        arguments, QuickstartConfig, "quickstart",
        "Train a small ViT with LocAt and without on scenes that the package draws, and compare them on one page.",
        _EXAMPLES,
    )  # fmt: skip

    from locatvit.cli.show import show_results
    from locatvit.recipes.quickstart import quickstart
    from locatvit.recipes.quickstart_report import NEXT_STEPS

    results, page = quickstart(config)
    show_results(results)
    print(f"The page with curves, segmentations and attention maps: {page}")
    print("What comes next:\n  " + NEXT_STEPS.replace("\n", "\n  "))
