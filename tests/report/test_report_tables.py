"""Groups over seeds, and the tables made of them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from made_up import BOTH, classification, paper_run, segmentation
from rich.console import Console

from locatvit.errors import LocAtError
from locatvit.report.aggregate import group_results, locat_label, titles, twin
from locatvit.report.tables import Table, difference_table, per_class_table, results_table
from locatvit.results import Result

GAUG = {"gaug": True, "prr": False}


def columns(table: Table | None, *names: str) -> list[tuple[str, ...]]:
    assert table is not None
    where = [table.columns.index(name) for name in names]
    return [tuple(row[i] for i in where) for row in table.rows]


def test_seeds_become_mean_and_sample_deviation() -> None:
    # 0.50, 0.53, 0.56: mean 0.53, squared deviations 2 * 0.03², over n - 1 = 2: sd 0.03
    table = results_table([classification(0.50), classification(0.53, seed=1), classification(0.56, seed=2)])
    assert columns(table, "top-1 (%)", "seeds", "parameters") == [("53.00 ± 3.00", "3", "712,330")]
    assert "standard deviation" in table.caption


def test_one_seed_has_no_deviation() -> None:
    table = results_table([classification(0.12345)])
    assert columns(table, "top-1 (%)", "seeds", "paper (%)") == [("12.35", "1", "-")]
    assert table.caption == ""


def test_a_repeated_seed_counts_once() -> None:
    # seed 0 twice: (0.2 + 0.4) / 2 = 0.3, then with 0.5 of seed 1: 0.4
    table = results_table([classification(0.2), classification(0.4), classification(0.5, seed=1)])
    assert columns(table, "top-1 (%)", "seeds") == [("40.00 ± 14.14", "2")]


def test_other_settings_are_another_row_that_says_so() -> None:
    table = results_table([classification(0.4, epochs=8), classification(0.6, epochs=30, seed=1)])
    assert columns(table, "model", "top-1 (%)") == [("ViT (epochs 8)", "40.00"), ("ViT (epochs 30)", "60.00")]


def test_where_and_how_fast_a_run_was_made_does_not_matter() -> None:
    runs = [
        classification(0.4, data={"root": "/a"}, num_workers=0, output="/runs/a"),
        classification(0.6, seed=1, data={"root": "/b"}, num_workers=8, output="/runs/b"),
    ]
    assert len(group_results(runs)) == 1


def test_the_backbone_s_seed_is_averaged_over_too() -> None:
    runs = [segmentation(0.2, backbone={"seed": 0}), segmentation(0.3, backbone={"seed": 1})]
    (group,) = group_results(runs)
    assert len(group.by_seed("miou")) == 2


def test_two_backbones_under_one_seed_are_kept_apart() -> None:
    short, long = segmentation(0.2), segmentation(0.3)
    short = replace(short, model={**short.model, "checkpoint_run": "vit-short"})
    long = replace(long, model={**long.model, "checkpoint_run": "vit-long"})
    told = columns(results_table([short, long]), "model", "mIoU (%)")
    assert told == [("ViT (backbone vit-short)", "20.00"), ("ViT (backbone vit-long)", "30.00")]


def test_classification_and_segmentation_of_one_model_share_a_row() -> None:
    table = results_table([classification(0.5), segmentation(0.25), classification(0.6, locat=BOTH)])
    assert columns(table, "LocAt", "top-1 (%)", "mIoU (%)", "pixel accuracy (%)") == [
        ("none", "50.00", "25.00", "50.00"),
        ("GAug + PRR", "60.00", "-", "-"),
    ]


def test_the_paper_s_figure_stands_beside_ours() -> None:
    table = results_table([paper_run("locatvit_tiny", "imagenet", BOTH), classification(0.3)])
    assert columns(table, "top-1 (%)", "paper (%)") == [("50.00", "73.94 (Table 1)"), ("30.00", "-")]


def test_locat_labels() -> None:
    assert locat_label(None) == "none"
    assert locat_label(GAUG) == "GAug"
    assert locat_label({"gaug": False, "prr": True}) == "PRR"
    assert locat_label({**BOTH, "start": "identity", "backend": "sdpa"}) == "GAug + PRR, start identity"


def test_titles_are_as_short_as_they_may_be() -> None:
    groups = group_results([segmentation(0.1), segmentation(0.2, locat=BOTH), segmentation(0.3, locat=GAUG)])
    assert titles(groups) == ["ViT", "ViT + LocAt", "ViT + GAug"]
    assert titles(groups[1:2]) == ["ViT"]
    groups = group_results([segmentation(0.1, epochs=1), segmentation(0.2, epochs=2)])
    assert titles(groups) == ["ViT (epochs 1)", "ViT (epochs 2)"]


def test_differences_are_paired_by_seed() -> None:
    # gains 0.10 and 0.12: mean 11 points, sd 1.41
    runs = [classification(0.3), classification(0.5, seed=1)]
    runs += [classification(0.4, locat=BOTH), classification(0.62, locat=BOTH, seed=1)]
    assert columns(difference_table(runs), "LocAt", "top-1", "seeds") == [("GAug + PRR", "+11.00 ± 1.41", "2")]


def test_a_loss_is_shown_as_a_loss_and_other_seeds_give_no_spread() -> None:
    runs = [classification(0.5), classification(0.5, seed=1), classification(0.4912, locat=GAUG, seed=2)]
    assert columns(difference_table(runs), "top-1", "seeds") == [("-0.88", "1")]


def test_no_difference_without_a_plain_model_trained_alike() -> None:
    assert difference_table([classification(0.5, locat=BOTH)]) is None
    assert difference_table([classification(0.5, epochs=8), classification(0.5, epochs=9, locat=BOTH)]) is None


def test_a_registered_twin_is_compared_with_timm_s_model() -> None:
    plain, locat = paper_run("vit_tiny_patch16_224", "imagenet"), paper_run("locatvit_tiny", "imagenet", BOTH)
    groups = group_results([plain, locat])
    assert twin(groups[1], groups) is groups[0]
    assert twin(groups[0], groups) is None


def test_per_class_means_and_classes_that_never_occur() -> None:
    table = per_class_table([segmentation(0.2), segmentation(0.4, seed=1), segmentation(0.6, locat=BOTH)])
    assert table.columns == ("class", "ViT", "ViT + LocAt")
    assert table.rows == (
        ("background", "75.00", "75.00"),
        ("disc", "30.00", "60.00"),
        ("ring", "-", "-"),
        ("mean", "30.00 ± 14.14", "60.00"),
    )


def test_per_class_needs_one_data_set() -> None:
    other = segmentation(0.2)
    other = replace(other, data={**other.data, "name": "camvid"})
    with pytest.raises(LocAtError, match=r"2 data sets, camvid, scenes; .* one data set"):
        per_class_table([segmentation(0.1), other])
    with pytest.raises(LocAtError, match="in none of the results"):
        per_class_table([classification(0.1)])


def test_markdown_escapes_what_would_be_markup() -> None:
    table = Table(("a|b", "n"), (("<b>*x*</b>\nnew", "1"),), caption="c")
    assert table.to_markdown().splitlines() == [
        "c",
        "",
        r"| a\|b | n |",
        "| --- | ---: |",
        r"| \<b\>\*x\*\</b\> new | 1 |",
    ]


def test_rich_table_shows_cells_as_they_are() -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(Table(("model",), (("[red]x[/red]",),)).to_rich())
    assert "[red]x[/red]" in console.export_text()


def test_a_short_row_is_refused() -> None:
    with pytest.raises(LocAtError, match=r"has 1 cells, \('x',\); it must have 2"):
        Table(("a", "b"), (("x",),))


def dense(miou: float, protocol: str = "locat", *, locat: dict | None = None, **changed: object) -> Result:
    """A segmentation under a protocol of which ``changed`` is not as published."""
    result = segmentation(miou, locat=locat, protocol={"protocol": protocol, **changed})
    scores = {"miou": miou, "pixel_accuracy": 0.5, "boundary_iou": miou / 2}
    return replace(result, protocol=protocol, metrics=scores, changed=changed)


def test_boundary_iou_has_a_column_where_it_was_measured() -> None:
    assert "boundary IoU (%)" not in results_table([segmentation(0.3)]).columns
    table = results_table([dense(0.3), dense(0.4, locat=BOTH)])
    assert columns(table, "mIoU (%)", "boundary IoU (%)") == [("30.00", "15.00"), ("40.00", "20.00")]
    gains = difference_table([dense(0.3), dense(0.4, locat=BOTH)])
    assert columns(gains, "mIoU", "boundary IoU") == [("+10.00", "+5.00")]


def test_a_changed_protocol_says_so_and_what() -> None:
    table = results_table([dense(0.3, num_updates=600, crop_size=[96, 96]), dense(0.4, locat=BOTH)])
    assert columns(table, "model", "LocAt") == [("ViT (locat, changed)", "none"), ("ViT", "GAug + PRR")]
    assert table.caption == "locat, changed: num_updates 600, crop_size [96, 96]."
    assert difference_table([dense(0.3, num_updates=600), dense(0.4, locat=BOTH)]) is None, "they do not compare"


def test_different_changes_are_told_apart_by_number() -> None:
    table = results_table([dense(0.3, num_updates=600), dense(0.4, "linear", norm=False), dense(0.5, "linear")])
    assert [row[0] for row in table.rows] == [
        "ViT (locat, changed (1))",
        "ViT (linear, changed (2), norm False)",
        "ViT (linear, norm None)",
    ]
    assert table.caption == "locat, changed (1): num_updates 600. linear, changed (2): norm False."


def test_the_two_protocols_have_rows_and_differences_of_their_own() -> None:
    results = [dense(0.3), dense(0.2, "linear"), dense(0.4, locat=BOTH), dense(0.25, "linear", locat=BOTH)]
    assert columns(results_table(results), "model", "mIoU (%)") == [
        ("ViT (locat)", "30.00"), ("ViT (linear)", "20.00"), ("ViT (locat)", "40.00"), ("ViT (linear)", "25.00"),
    ]  # fmt: skip
    assert columns(difference_table(results), "model", "mIoU") == [("ViT (locat)", "+10.00"), ("ViT (linear)", "+5.00")]
    assert titles(group_results(results)) == ["ViT, locat", "ViT, linear", "ViT + LocAt, locat", "ViT + LocAt, linear"]


def test_the_paper_s_figure_beside_a_changed_result_is_marked() -> None:
    model = {"name": "vit_tiny_patch16_224", "label": "ViT", "kwargs": {}, "locat": None}
    data = {"name": "ade20k", "split": "val"}
    frozen, changed = (replace(found, model=model, data=data) for found in (dense(0.2), dense(0.2, num_updates=600)))
    (figure,) = columns(results_table([frozen]), "paper (%)")[0]
    assert figure.endswith(" (Table 1)")
    assert columns(results_table([changed]), "paper (%)") == [(f"{figure}, not comparable",)]


def test_where_features_are_kept_makes_no_other_experiment() -> None:
    first, second = (
        replace(result, config={**result.config, "cache": {"dir": place, "max_gib": size}, "sheets": size})
        for result, place, size in ((dense(0.3), None, 8), (dense(0.4), "features", 0))
    )
    second = replace(second, config={**second.config, "seed": 1})
    assert len(group_results([first, second])) == 1
