"""Sheets and overlays, pixel by pixel: what is shown where, in which colours, and that no size or name breaks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locatvit.errors import LocAtError
from locatvit.report.lettering import HATCH_GROUND, HATCH_LINE, Entry, elide, font, legend, line_height
from locatvit.report.overlays import class_shares, draw_overlay, write_overlay
from locatvit.report.sheets import WRONG, SheetRow, draw_sheet, resized, shown_size, write_sheet

CLASSES = ("sky", "road", "tree")
COLOURS = ((128, 128, 0), (10, 200, 30), (60, 40, 222))


def row(height: int = 300, width: int = 400) -> SheetRow:
    """Sky above, road below, a strip without a label; the right half of the road is taken for tree."""
    image = np.full((height, width, 3), (90, 120, 200), np.uint8)
    truth = np.zeros((height, width), np.int64)
    truth[height // 2 :] = 1
    truth[: height // 10] = 255
    prediction = np.where(truth == 255, 0, truth)
    prediction[height // 2 :, width // 2 :] = 2
    return SheetRow("photo.jpg", image, truth, prediction, 0.4567)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


def cells(sheet: Image.Image, width: int, height: int, top: int) -> list[np.ndarray]:
    """The four pictures of a row whose pictures begin at ``top``."""
    pixels = np.asarray(sheet)
    return [pixels[top : top + height, 28 + k * (width + 16) :][:, :width] for k in range(4)]


def first_top() -> int:
    return 28 + line_height(30) + line_height(22) + line_height(20)


def test_a_row_shows_image_truth_prediction_and_errors_pixel_by_pixel() -> None:
    one = row()
    image, truth, prediction, errors = cells(draw_sheet([one], CLASSES, COLOURS, "t"), 400, 300, first_top())
    assert (image == one.image).all()
    for label in (0, 1):
        assert (truth[one.truth == label] == COLOURS[label]).all()
    for label in (0, 1, 2):
        assert (prediction[one.prediction == label] == COLOURS[label]).all()
    without = one.truth == 255
    for picture in (truth, errors):
        hatched = {tuple(colour) for colour in picture[without].tolist()}
        assert hatched == {HATCH_GROUND, HATCH_LINE}
    wrong = errors[(one.prediction != one.truth) & ~without].astype(int)
    right = errors[(one.prediction == one.truth)].astype(int)
    assert len(np.unique(wrong, axis=0)) == len(np.unique(right, axis=0)) == 1, "the image is of one colour"
    assert wrong[0, 0] - wrong[0, 1:].max() > 120, "red"
    assert np.ptp(right[0]) == 0, "grey"
    assert right[0, 0] > 140, "pale"


def test_the_sheet_is_as_large_as_its_rows(tmp_path: Path) -> None:
    one, two = row(), replace(row(100, 500), name="two")
    single, double = (draw_sheet(rows, CLASSES, COLOURS, "t") for rows in ([one], [one, two]))
    assert single.size[0] == 2 * 28 + 4 * 400 + 3 * 16
    assert double.size[0] == 2 * 28 + 4 * 500 + 3 * 16, "columns are as wide as the widest picture"
    assert double.size[1] - single.size[1] == 100 + line_height(20) + 16
    path = write_sheet(tmp_path / "sheets" / "a.png", [one, two], CLASSES, COLOURS, "t")
    with Image.open(path) as written:
        assert (written.format, written.size) == ("PNG", double.size)
        assert (np.asarray(written) == np.asarray(double)).all()


def test_the_legend_has_the_classes_that_show() -> None:
    road_only = replace(row(), truth=np.ones((300, 400), int), prediction=np.ones((300, 400), int))
    sheet = draw_sheet([road_only], CLASSES, COLOURS, "t")
    assert count(sheet, COLOURS[0]) == count(sheet, COLOURS[2]) == count(sheet, HATCH_LINE) == 0
    chips = count(sheet, COLOURS[1]) - 2 * 300 * 400
    assert 300 < chips < 500, "one chip of 20 x 20 pixels within its rim"
    assert 300 < count(sheet, WRONG) < 500, "nothing is wrong, its chip is there"
    assert count(draw_sheet([row()], CLASSES, COLOURS, "t"), HATCH_LINE) > 0


def test_without_an_ignored_label_255_is_a_class_or_a_mistake() -> None:
    with pytest.raises(LocAtError, match="the truth of photo.jpg holds the label 255; it must be 0 to 2"):
        draw_sheet([row()], CLASSES, COLOURS, "t", ignore_index=None)
    full = replace(row(), truth=row().prediction)
    assert count(draw_sheet([full], CLASSES, COLOURS, "t", ignore_index=None), HATCH_LINE) == 0


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((20, 24), (420, 504)),
        ((360, 480), (360, 480)),
        ((300, 3000), (51, 512)),
        ((3000, 2), (512, 1)),
        ((1, 1), (512, 512)),
    ],
)
def test_pictures_are_enlarged_by_whole_numbers_and_otherwise_averaged(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert shown_size(*size, 512) == shown
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = np.asarray(resized(pixels, shown))
    assert picture.shape == (*shown, 3)
    if shown[0] >= size[0]:
        factor = shown[0] // size[0]
        assert (picture[::factor, ::factor] == pixels).all()
        assert (picture[factor - 1 :: factor, factor - 1 :: factor] == pixels).all()
    else:
        assert abs(picture.mean() - pixels.mean()) < 3


def test_long_names_many_classes_and_odd_shapes_fit() -> None:
    classes = [f"class {number} with an official name of many words, and then some" for number in range(150)]
    colours = [(number, 255 - number, (7 * number) % 256) for number in range(150)]
    rows = []
    for height, width in ((40, 900), (900, 30), (1, 1)):
        mask = (np.arange(height * width) % 150).reshape(height, width)
        image = np.zeros((height, width, 3), np.uint8)
        rows.append(SheetRow("a" * 500 + ".jpg", image, mask, mask[::-1].copy(), 0.5))
    sheet = draw_sheet(rows, classes, colours, "Title " * 100)
    assert sheet.width == 2 * 28 + 4 * 512 + 3 * 16
    pixels = np.asarray(sheet)
    assert (pixels[:, :28] == 255).all()
    assert (pixels[:, -28:] == 255).all()
    assert (pixels[-28:] == 255).all()


def test_words_are_cut_in_the_middle() -> None:
    assert elide("0016E5_07959.jpg", 1000, 20) == "0016E5_07959.jpg"
    short = elide("a_very_long_name_of_a_file_0016E5_07959.jpg", 200, 20)
    head, _, tail = short.partition("…")
    assert font(20).getlength(short) <= 200
    assert "a_very_long_name_of_a_file_0016E5_07959.jpg".startswith(head)
    assert "a_very_long_name_of_a_file_0016E5_07959.jpg".endswith(tail)
    assert min(len(head), len(tail)) > 5
    assert elide("two\nlines\tof  it", 1000, 20) == "two lines of it"
    assert elide("abc", 1, 20) == "…"


def test_a_legend_reads_down_its_columns_and_keeps_its_width() -> None:
    entries = [Entry(f"c{number}", (number + 1, 0, 0), "12.5 %") for number in range(40)]
    for width in (120, 480, 2000):
        picture = legend(entries, width)
        assert picture.width == width
        first, second = (np.argwhere((np.asarray(picture) == (n, 0, 0)).all(axis=-1))[0] for n in (1, 2))
        assert first[1] == second[1]
        assert second[0] - first[0] == line_height(20)
        assert count(picture, (40, 0, 0)) > 300, "the last is there too"
    assert legend(entries, 120).height == 40 * line_height(20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": np.zeros((2, 2), int)}, r"the truth of photo.jpg has the shape \(2, 2\); it must be \(300, 400\)"),
        ({"prediction": np.full((300, 400), 3)}, "the prediction of photo.jpg holds the label 3; it must be 0 to 2"),
        ({"image": np.zeros((300, 400), np.uint8)}, r"image photo.jpg has the shape \(300, 400\)"),
    ],
)
def test_rows_are_checked(change: dict, message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        draw_sheet([replace(row(), **change)], CLASSES, COLOURS, "t")


def test_a_sheet_needs_rows_and_a_colour_a_class(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match="rows is empty; a sheet needs one image or more"):
        write_sheet(tmp_path / "a.png", [], CLASSES, COLOURS, "t")
    with pytest.raises(LocAtError, match="there are 2 colours for 3 classes; give one a class"):
        write_sheet(tmp_path / "a.png", [row()], CLASSES, COLOURS[:2], "t")
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_mixes_photo_and_colours() -> None:
    one = row(512, 600)
    picture = np.asarray(draw_overlay(one.image, one.prediction, CLASSES, COLOURS, 0.25)).astype(int)
    assert picture.shape[1] == 600
    inside = picture[20, 20]  # of the sky, far from a border
    assert np.abs(inside - (0.25 * np.array(COLOURS[0]) + 0.75 * one.image[0, 0])).max() <= 1
    border = picture[255, 20]
    assert np.abs(border - COLOURS[0]).max() < np.abs(inside - COLOURS[0]).max(), "borders are nearly full colour"
    photo = np.asarray(draw_overlay(one.image, one.prediction, CLASSES, COLOURS, 0.0))[:512]
    assert (photo == one.image).all(), "at opacity 0 the photo alone"
    colours = np.asarray(draw_overlay(one.image, one.prediction, CLASSES, COLOURS, 1.0))[:512]
    assert (colours == np.array(COLOURS, np.uint8)[one.prediction]).all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((24, 32), (384, 512)), ((600, 700), (600, 700)), ((1500, 3000), (1024, 2048)), ((40, 3), (480, 36))],
)
def test_overlays_are_of_a_size_to_look_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    mask = np.zeros(size, np.uint8)
    picture = draw_overlay(np.full((*size, 3), 7, np.uint8), mask, CLASSES, COLOURS, 0.0)
    assert count(picture, (7, 7, 7)) == shown[0] * shown[1]
    assert picture.width == max(shown[1], 480)


def test_the_overlays_legend_has_the_largest_classes_first_and_counts_the_rest() -> None:
    mask = np.repeat(np.repeat(np.arange(100).reshape(10, 10), 60, axis=0), 60, axis=1)
    mask[:, :60] = 99
    names, colours = [f"c{n}" for n in range(100)], [(n, 255 - n, 99) for n in range(100)]
    picture = np.asarray(draw_overlay(np.zeros((600, 600, 3), np.uint8), mask, names, colours, 0.0))[600:]
    chips = [n for n in range(100) if (picture == colours[n]).all(axis=-1).any()]
    assert len(chips) == 30
    first = np.argwhere((picture == colours[99]).all(axis=-1))[0]
    assert all((first <= np.argwhere((picture == colours[n]).all(axis=-1))[0]).all() for n in chips)


def test_shares_add_up_to_one() -> None:
    mask = np.array([[0, 0, 2], [2, 2, 2]])
    assert class_shares(mask, 4) == pytest.approx([1 / 3, 0, 2 / 3, 0])


def test_overlays_are_written_as_their_ending_says(tmp_path: Path) -> None:
    one = row(100, 120)
    for name, kind in (("a.jpg", "JPEG"), ("a.png", "PNG")):
        with Image.open(write_overlay(tmp_path / name, one.image, one.prediction, CLASSES, COLOURS)) as written:
            assert written.format == kind
    with pytest.raises(LocAtError, match="an overlay's file is a.gif; it must end in .jpg or .png"):
        write_overlay(tmp_path / "a.gif", one.image, one.prediction, CLASSES, COLOURS)
    with pytest.raises(LocAtError, match=r"opacity is 1.5; it must be in \[0, 1\]"):
        write_overlay(tmp_path / "b.png", one.image, one.prediction, CLASSES, COLOURS, 1.5)
    with pytest.raises(LocAtError, match="the mask holds the label 255"):
        write_overlay(tmp_path / "b.png", one.image, one.truth, CLASSES, COLOURS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]
