"""The sheet of images beside their masks: what is where, read from its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locatvit.errors import LocAtError
from locatvit.report.contact_sheet import ContactCell, draw_contact_sheet, write_contact_sheet

CLASSES, COLOURS = ("road", "sky", "tree"), ((200, 10, 10), (10, 200, 10), (10, 10, 200))


def cell(label: int = 0, size: tuple[int, int] = (30, 40)) -> ContactCell:
    """A blue-grey image, its mask of one class in the left half and without a label in the right."""
    mask = np.full(size, label)
    mask[:, size[1] // 2 :] = 255
    return ContactCell("name", np.full((*size, 3), (90, 91, 120), np.uint8), mask)


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(sheet) == colour).all(axis=-1).mean())


def test_image_and_mask_show_side_by_side() -> None:
    sheet = draw_contact_sheet([cell()], CLASSES, COLOURS, "title")
    pixels = np.asarray(sheet)
    photo, painted = (np.argwhere((pixels == colour).all(axis=-1)) for colour in ((90, 91, 120), COLOURS[0]))
    # 30 x 40 at 24 sheet pixels each: within the half of the sheet's width that a single pair has
    assert len(photo) == 30 * 40 * 24**2
    assert photo[:, 0].min() == painted[:, 0].min()
    assert photo[:, 1].max() < painted[:, 1][painted[:, 0] <= photo[:, 0].max()].min()


def test_the_legend_has_the_classes_that_show() -> None:
    sheet = draw_contact_sheet([cell(0), cell(2)], CLASSES, COLOURS, "title")
    assert share(sheet, COLOURS[0]) > 0
    assert share(sheet, COLOURS[2]) > 0
    assert share(sheet, COLOURS[1]) == 0
    wider = draw_contact_sheet([cell(0), cell(2)], CLASSES, COLOURS, "title", values={0: "12.00 %", 255: "50.00 %"})
    assert wider.size == sheet.size
    assert not np.array_equal(np.asarray(wider), np.asarray(sheet))


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_any_number_and_mixed_sizes(count: int) -> None:
    cells = [cell(number % 3, (30 + 40 * (number % 2), 40)) for number in range(count)]
    sheet = draw_contact_sheet(cells, CLASSES, COLOURS, "a title " * 40, "a note")
    assert 900 < sheet.width < 2200
    # every image shows: none lies over another or beyond the rim
    assert share(sheet, (90, 91, 120)) * sheet.width * sheet.height >= count * 30 * 40


def test_written_as_png(tmp_path: Path) -> None:
    path = write_contact_sheet(tmp_path / "out" / "sheet.png", [cell()], CLASSES, COLOURS, "title")
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
    with pytest.raises(LocAtError, match="a contact sheet's file is sheet.jpg; it must end in .png"):
        write_contact_sheet(tmp_path / "sheet.jpg", [cell()], CLASSES, COLOURS, "title")


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(LocAtError, match="cells is empty; a contact sheet needs one image or more"):
        draw_contact_sheet([], CLASSES, COLOURS, "title")
    with pytest.raises(LocAtError, match="there are 2 colours for 3 classes"):
        draw_contact_sheet([cell()], CLASSES, COLOURS[:2], "title")
    with pytest.raises(LocAtError, match="the mask of name holds the label 7"):
        draw_contact_sheet([cell(7)], CLASSES, COLOURS, "title")
