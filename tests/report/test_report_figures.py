"""Figures: what is drawn, in which colours, and what is refused."""

from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from locatvit.errors import LocAtError
from locatvit.report import figures
from locatvit.report.palette import BACKGROUND, IGNORE, colours, model_colours, rgb

CLASSES = ("background", "disc", "ring", "star")


def rows(*top1: float) -> list[dict[str, float]]:
    return [
        {"update": 10 * epoch, "epoch": epoch, "train_loss": 2.0 / epoch, "lr": 0.1, "top1": value}
        for epoch, value in enumerate(top1, start=1)
    ]


def pixels(figure) -> np.ndarray:
    """[h, w, 3], uint8."""
    image = matplotlib.image.imread(io.BytesIO(figures.to_png_bytes(figure)))
    return np.round(255 * image[..., :3]).astype(np.uint8)


def has_colour(figure, colour: str) -> bool:
    wanted = np.round(255 * np.array(rgb(colour))).astype(np.uint8)
    return bool((pixels(figure) == wanted).all(axis=-1).sum() > 20)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """An image of 14 x 22 pixels and its mask: background, one disc, a row without label."""
    image = np.random.default_rng(0).integers(0, 256, (14, 22, 3), dtype=np.uint8)
    mask = np.zeros((14, 22), dtype=np.uint8)
    mask[3:9, 4:12] = 1
    mask[0] = 255
    return image, mask


def test_curves_of_one_seed_are_one_line() -> None:
    figure = figures.curves({"ViT": [rows(0.1, 0.3)], "LocAtViT": [rows(0.2, 0.5)]})
    loss, top1 = figure.axes
    assert [line.get_xdata().tolist() for line in top1.lines] == [[1, 2], [1, 2]]
    assert top1.lines[1].get_ydata().tolist() == [20, 50]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ViT", "LocAtViT"]
    assert top1.lines[0].get_color() == loss.lines[0].get_color() != top1.lines[1].get_color()


def test_several_seeds_are_thin_lines_and_their_mean_over_shared_epochs() -> None:
    figure = figures.curves({"ViT": [rows(0.1, 0.3, 0.9), rows(0.3, 0.5)]})
    first, second, mean = figure.axes[1].lines
    assert first.get_linewidth() == second.get_linewidth() < mean.get_linewidth()
    assert mean.get_xdata().tolist() == [1, 2]
    assert mean.get_ydata() == pytest.approx([20, 40])


def test_curves_draw_what_there_is() -> None:
    few = [{"update": 5, "train_loss": 1.0}, {"update": 10, "train_loss": 0.5, "miou": 0.2}]
    figure = figures.curves({"head": [few]})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Training loss (nats)", "mIoU (%)"]
    assert figure.axes[0].get_xlabel() == "Update"
    with pytest.raises(LocAtError, match="rows of head have none of train_loss, top1, miou"):
        figures.curves({"head": [[{"epoch": 1, "lr": 0.1}]]})
    with pytest.raises(LocAtError, match="no model"):
        figures.curves({})


def test_segmentation_sheet_has_images_truth_and_each_model() -> None:
    image, mask = scene()
    wrong = np.where(mask == 1, 3, 0)
    figure = figures.segmentation_sheet([image, image], [mask, mask], {"ViT": [wrong, mask]}, CLASSES, 255)
    assert len(figure.axes) == 2 * 3
    assert [axis.get_title() for axis in figure.axes[:3]] == ["Image", "Truth", "ViT"]
    # the ring occurs nowhere
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["background", "disc", "star", "not labelled"]
    palette = colours(4)
    assert all(has_colour(figure, shade) for shade in (BACKGROUND, palette[0], palette[2], IGNORE))
    assert not has_colour(figure, palette[1])


def test_a_mask_keeps_its_colours_and_its_pixels() -> None:
    image, mask = scene()
    figure = figures.segmentation_sheet([image / 255.0], [mask], {}, CLASSES, 255)
    truth = figure.axes[1].images[0].get_array()
    assert to_hex(truth[5, 5]).upper() == colours(4)[0]
    assert to_hex(truth[0, 0]).upper() == IGNORE
    assert to_hex(truth[13, 0]).upper() == BACKGROUND


def test_segmentation_sheet_refuses_what_does_not_fit() -> None:
    image, mask = scene()
    with pytest.raises(LocAtError, match="it got images 1, Truth 1, ViT 2"):
        figures.segmentation_sheet([image], [mask], {"ViT": [mask, mask]}, CLASSES, 255)
    with pytest.raises(LocAtError, match="images 0"):
        figures.segmentation_sheet([], [], {}, CLASSES, 255)
    with pytest.raises(LocAtError, match=r"mask 0 of ViT has the shape \(7, 22\); it must be \(14, 22\)"):
        figures.segmentation_sheet([image], [mask], {"ViT": [mask[:7]]}, CLASSES, 255)
    with pytest.raises(LocAtError, match=r"mask 0 of Truth holds the label 9; it must be 0 to 3 or ignore_index 255"):
        figures.segmentation_sheet([image], [mask + 9 * (mask == 1) - (mask == 1)], {}, CLASSES, 255)
    with pytest.raises(LocAtError, match=r"image 0 has the shape \(3, 14, 22\); it must be \(height, width, 3\)"):
        figures.segmentation_sheet([image.transpose(2, 0, 1)], [mask], {}, CLASSES, 255)


def test_attention_sheet_marks_the_patch_and_prints_the_peak() -> None:
    image, _ = scene()
    weights = np.zeros((7, 11))
    weights[2, 3] = 0.25
    figure = figures.attention_sheet(image, [(2, 3), (6, 10)], {"ViT": [weights, weights], "LocAt": [weights] * 2})
    assert len(figure.axes) == 2 * 3
    assert figure.axes[1].get_xlabel() == "largest weight 25.0 %"
    # patches are 2 x 2 pixels; pixel 0 reaches from -0.5 to 0.5
    marks = [patch for patch in figure.axes[3].patches if isinstance(patch, Rectangle)]
    assert {mark.get_xy() for mark in marks} == {(19.5, 11.5)}
    assert {(mark.get_width(), mark.get_height()) for mark in marks} == {(2, 2)}
    heat = figure.axes[1].images[1]
    assert heat.get_extent() == [-0.5, 21.5, 13.5, -0.5]
    alpha = heat.get_array()[..., 3]
    assert alpha[2, 3] == alpha.max() > 0
    assert np.count_nonzero(alpha) == 1
    assert pixels(figure).shape[2] == 3


def test_attention_sheet_refuses_what_does_not_fit() -> None:
    image, _ = scene()
    weights = np.full((7, 11), 0.1)
    with pytest.raises(LocAtError, match=r"point \(7, 0\) is outside the grid \(7, 11\)"):
        figures.attention_sheet(image, [(7, 0)], {"ViT": [weights]})
    with pytest.raises(LocAtError, match=r"the shapes \[\(7, 11\), \(11, 7\)\]; all must be one"):
        figures.attention_sheet(image, [(0, 0)], {"ViT": [weights], "LocAt": [weights.T]})
    with pytest.raises(LocAtError, match="of ViT hold nan; weights must be numbers >= 0"):
        figures.attention_sheet(image, [(0, 0)], {"ViT": [weights * np.nan]})


def test_a_map_of_zeros_is_drawn_as_nothing() -> None:
    image, _ = scene()
    figure = figures.attention_sheet(image, [(0, 0)], {"ViT": [np.zeros((7, 11))]})
    assert figure.axes[1].get_xlabel() == "largest weight 0.0 %"
    assert figure.axes[1].images[1].get_array()[..., 3].max() == 0


def test_bars_leave_out_classes_that_nobody_saw() -> None:
    figure = figures.per_class_bars({"ViT": {"a": 0.5, "b": None, "c": 0.1}, "LocAt": {"a": 0.6, "b": None, "c": None}})
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "c"]
    assert [bar.get_width() for bar in axis.patches] == [50, 10, 60, 0]
    with pytest.raises(LocAtError, match="per_class of ViT holds no value"):
        figures.per_class_bars({"ViT": {"a": None}})


def test_the_reader_s_own_settings_do_not_show() -> None:
    drawn = figures.to_png_bytes(figures.curves({"$x$": [rows(0.1, 0.3)]}))
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "axes.facecolor": "red"}):
        assert figures.to_png_bytes(figures.curves({"$x$": [rows(0.1, 0.3)]})) == drawn


def test_data_uri_holds_the_png() -> None:
    figure = figures.per_class_bars({"ViT": {"a": 0.5}})
    head, _, body = figures.to_data_uri(figure).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == figures.to_png_bytes(figure)


@pytest.mark.parametrize("count", [0, 1, 7, 60, 171])
def test_palette_is_stable_and_without_twins(count: int) -> None:
    found = colours(count)
    assert len(set(found)) == count
    assert colours(count + 1)[:count] == found
    assert not {IGNORE, BACKGROUND} & set(found)
    assert len(set(model_colours(count))) == count


def test_class_colours_stay_apart_for_colour_blind_eyes() -> None:
    # the simulation of Viénot, Brettel and Mollon (1999), not the one that chose the colours
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    linear = np.array([rgb(colour) for colour in colours(12)]) ** 2.2
    for eye in (protan, deutan):
        seen = linear @ (np.linalg.inv(to_lms) @ eye @ to_lms).T
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(12, dtype=bool)].min() > 0.1
