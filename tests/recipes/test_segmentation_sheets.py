"""Which images a sheet is of: the worst and the best, read again, and no more kept than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from locatvit.data.images import UnreadableImage
from locatvit.data.spec import DataSpec
from locatvit.errors import LocAtError
from locatvit.recipes import segmentation_sheets
from locatvit.recipes.segmentation_sheets import SheetCollector
from locatvit.report.sheets import SheetRow

SPEC = DataSpec("made_up", "segmentation", ("sky", "road"), 255, palette=((9, 8, 7), (1, 2, 3)))


class Stripes:
    """Images of 10 x 10 pixels, the lower half road, its top row without a label; number ``broken`` cannot be read."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.spec, self.transform, self._count, self._broken = SPEC, None, count, broken

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index == self._broken:
            raise UnreadableImage(f"image {index} cannot be read")
        return Image.new("RGB", (10, 10), (index, 0, 0)), truth()

    def describe(self, index: int) -> str:
        return f"some/folder/{index}.jpg"


def truth() -> torch.Tensor:
    mask = torch.zeros(10, 10, dtype=torch.long)
    mask[5:] = 1
    mask[0] = 255
    return mask


def predicted(wrong: int) -> torch.Tensor:
    """The truth but for some pixels of the road, which are taken for sky."""
    labels = truth()
    labels[0] = 0
    labels[5:].view(-1)[:wrong] = 0
    return labels


def collected(wrong: list[int], num_images: int) -> SheetCollector:
    collector = SheetCollector(2, 255, num_images)
    for index, count in enumerate(wrong):
        collector.update(index, predicted(count), truth())
    return collector


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[SheetRow], str]]:
    """Rows and title of each sheet that is written, by the file's name."""
    found: dict[str, tuple[list[SheetRow], str]] = {}
    draw = segmentation_sheets.write_sheet

    def write_sheet(path: Path, rows: list[SheetRow], classes: Any, colours: Any, title: str, ignore: Any) -> Path:
        assert (classes, colours, ignore) == (SPEC.classes, SPEC.colours, 255)
        found[path.name] = (rows, title)
        return draw(path, rows, classes, colours, title, ignore)

    monkeypatch.setattr(segmentation_sheets, "write_sheet", write_sheet)
    return found


def names(sheet: tuple[list[SheetRow], str]) -> list[str]:
    return [row.name for row in sheet[0]]


def test_the_worst_and_the_best_in_order(tmp_path: Path, sheets: dict) -> None:
    wrong = [7, 0, 30, 12, 45, 3, 50, 1, 22]
    written = collected(wrong, 3).write(tmp_path, Stripes(9), "ViT on made_up")
    assert written == [tmp_path / "sheets" / "worst.png", tmp_path / "sheets" / "best.png"]
    assert names(sheets["worst.png"]) == ["6.jpg", "4.jpg", "2.jpg"]
    assert names(sheets["best.png"]) == ["1.jpg", "7.jpg", "5.jpg"]
    assert sheets["worst.png"][1] == "ViT on made_up: worst images"
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_rows_have_the_images_own_prediction_and_score(tmp_path: Path, sheets: dict) -> None:
    collected([0, 0, 20, 0], 1).write(tmp_path, Stripes(4))
    (row,), title = sheets["worst.png"]
    assert title == "Worst images"
    assert (row.image[..., 0] == 2).all()
    assert (row.truth == truth().numpy()).all()
    assert (row.prediction == predicted(20).numpy()).all()
    # by hand: sky 40 of 60 pixels, road 30 of 50; the row without a label counts nowhere
    assert row.score == pytest.approx((40 / 60 + 30 / 50) / 2)


def test_equal_scores_keep_the_earlier_image(tmp_path: Path, sheets: dict) -> None:
    collected([5] * 7, 2).write(tmp_path, Stripes(7))
    assert names(sheets["worst.png"]) == names(sheets["best.png"]) == ["0.jpg", "1.jpg"]


def test_a_small_set_is_shared_out(tmp_path: Path, sheets: dict) -> None:
    collected([4, 9, 1, 2, 0], 5).write(tmp_path, Stripes(5))
    assert names(sheets["worst.png"]) == ["1.jpg", "0.jpg"]
    assert names(sheets["best.png"]) == ["4.jpg", "2.jpg"]
    collected([4], 5).write(tmp_path, Stripes(1))
    assert names(sheets["worst.png"]) == names(sheets["best.png"]) == ["0.jpg"]


def test_no_more_is_kept_than_is_shown() -> None:
    collector = collected(list(np.random.default_rng(0).integers(0, 50, 200)), 3)
    kept = [*collector._worst, *collector._best]
    assert len(kept) == 6
    assert all(one.prediction.dtype == np.uint8 and one.prediction.base is None for one in kept)


def test_images_without_a_label_have_no_score(tmp_path: Path, sheets: dict) -> None:
    collector = SheetCollector(2, 255, 1)
    collector.update(0, predicted(0), torch.full((10, 10), 255))
    assert collector.write(tmp_path, Stripes(1)) == []
    assert not list(tmp_path.iterdir())
    collector.update(1, predicted(9), truth())
    collector.write(tmp_path, Stripes(2))
    assert names(sheets["worst.png"]) == ["1.jpg"]


def test_an_image_that_another_stood_in_for_is_left_out(tmp_path: Path, sheets: dict) -> None:
    collected([1, 40, 50, 2, 3, 4], 2).write(tmp_path, Stripes(6, broken=2))
    assert names(sheets["worst.png"]) == ["1.jpg"]
    assert names(sheets["best.png"]) == ["0.jpg", "3.jpg"]


def test_a_sheet_needs_an_image() -> None:
    with pytest.raises(LocAtError, match="num_images is 0; a sheet needs 1 or more"):
        SheetCollector(2, 255, 0)
