"""``locatvit predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from locatvit.cli.options import make_parser, parse
from locatvit.recipes.predict_config import PredictConfig

if TYPE_CHECKING:
    from locatvit.recipes.predict import Predictions
    from locatvit.report.tables import Table

_EXAMPLES = """examples:
  a folder of photos, with all that is below it, by the head of a finished segmentation run:
    locatvit predict runs/camvid --images photos --output predictions
  chosen photos, masks alone; files that cannot be read are named and passed over:
    locatvit predict runs/camvid --images a.jpg b.png --output out --overlay none --max_bad_images 10
Written: masks/NAME.png (8 bits, pixel = class, with the classes' colours), overlays/NAME.jpg and predictions.json
(classes, colours, the share of each class by photo, run and versions). The same command again predicts what is not
there yet.
"""
_MOST_CLASSES = 20


def run(arguments: Sequence[str]) -> None:
    """Predict, and print what shows in the photos."""
    parser = make_parser("predict", "Masks and overlays of photos, by a trained segmentation head.", _EXAMPLES)
    parser.add_argument("run", type=Path, help="folder of a finished segmentation run")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True,
        help="photos, or folders that are searched for photos with all that is below them",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="predict anew what is there already, and put masks in the place of files of other photos",
    )  # fmt: skip
    parser.add_class_arguments(PredictConfig, None, skip={"run", "images", "overwrite"})
    config, _ = parse(parser, arguments, PredictConfig)

    from locatvit.cli.show import show_table
    from locatvit.recipes.predict import PREDICTIONS_FILE, predict

    predictions = predict(config)
    show_table(classes_table(predictions))
    now = sum(one.is_new for one in predictions.images)
    words = [f"{now} predicted", f"{len(predictions.images) - now} there already"]
    words += [f"{len(predictions.skipped)} unreadable"] if predictions.skipped else []
    print(f"photos: {', '.join(words)}")
    for reason in predictions.skipped.values():
        print(f"passed over: {reason}")
    parts = ["masks/", *(["overlays/"] if config.overlay != "none" else []), PREDICTIONS_FILE]
    print(f"in {predictions.output}: {', '.join(parts)}")


def classes_table(predictions: Predictions) -> Table:
    """The classes that show, the largest first: mean share of a photo's pixels, and the number of photos."""
    from locatvit.report.tables import Table

    images = predictions.images
    names = dict.fromkeys(name for one in images for name in one.shares)
    mean = {name: sum(one.shares.get(name, 0.0) for one in images) / len(images) for name in names}
    photos = {name: sum(name in one.shares for one in images) for name in names}
    order = sorted(names, key=lambda name: -mean[name])
    rest = len(order) - _MOST_CLASSES
    return Table(
        ("class", "pixels (%)", "photos"),
        tuple((name, f"{100 * mean[name]:.2f}", str(photos[name])) for name in order[:_MOST_CLASSES]),
        caption=f"The largest {_MOST_CLASSES}; {rest} more are in predictions.json." if rest > 0 else "",
    )
