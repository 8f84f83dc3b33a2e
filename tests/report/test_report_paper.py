"""The paper's figures, and which of them stands beside a result."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from made_up import BOTH, paper_run

from locatvit.errors import LocAtError
from locatvit.report.paper import PaperTable, backbone_name, paper_figure, paper_table, paper_value


# read off the paper's pages
@pytest.mark.parametrize(
    ("table", "row", "column", "printed"),
    [
        ("table1_main", ("tiny", "vit", "yes"), "ade20k_miou", 23.47),
        ("table1_main", ("base", "jumbo", "no"), "gflops", 19.74),
        ("table3_dino", "knn_20", "locatvit_s16", 63.74),
        ("table3_small", "small", "cifar100_locatvit", 81.13),
        ("table4_hummingbird", ("regvit", "tiny"), "voc_locat", 52.3),
        ("table5_ablation", "vit+prr", "base_imagenet", 82.19),
        ("table6_related", "davit", "coco_stuff", 32.38),
        ("table7_attention_ablation", "no_scaling", "mini_imagenet_base", 83.07),
        ("table8_kernels", "laplace", "tiny_pascal_context", 37.80),
    ],
)
def test_value(table: PaperTable, row: str | tuple[str, ...], column: str, printed: float) -> None:
    assert paper_value(table, row, column) == printed


def test_every_table_is_full() -> None:
    for table in get_args(PaperTable):
        rows = paper_table(table)
        assert rows
        assert len({tuple(columns) for columns in rows.values()}) == 1, table


def test_unknown_places_list_what_is_near() -> None:
    with pytest.raises(LocAtError, match=r"no table 'table1' of the paper; did you mean .*table1_main"):
        paper_value("table1", "tiny", "x")  # type: ignore[arg-type]
    with pytest.raises(LocAtError, match=r"no row 'tiny, vit, maybe'; did you mean .*tiny, vit, yes"):
        paper_value("table1_main", ("tiny", "vit", "maybe"), "ade20k_miou")
    with pytest.raises(LocAtError, match=r"no column 'ade20k'; did you mean .*tiny_ade20k"):
        paper_value("table5_ablation", "vit", "ade20k")


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (paper_run("vit_tiny_patch16_224", "imagenet"), "72.39 (Table 1)"),
        (paper_run("locatvit_tiny", "imagenet", BOTH), "73.94 (Table 1)"),
        (paper_run("locatvit_base", "imagenet", {"gaug": True, "prr": False}), "82.00 (Table 5)"),
        (paper_run("vit_base_patch16_224", "imagenet", {"gaug": False, "prr": True}), "82.19 (Table 5)"),
        (paper_run("vit_tiny_patch16_224", "imagenet", BOTH, reg_tokens=4), "74.08 (Table 1)"),
        (paper_run("locatvit_small", "cifar100", BOTH, num_classes=100, img_size=224), "81.13 (Table 3)"),
        (paper_run("locatvit_tiny", "imagenet", {**BOTH, "position_embedding": False}), "73.10 (Table 5)"),
        (
            paper_run("vit_tiny_patch16_224", "imagenet", {"gaug": False, "prr": False, "pooling": "avg"}),
            "72.50 (Table 5)",
        ),
        (paper_run("locatvit_base", "imagenet", {**BOTH, "kernel": "laplace"}), "82.24 (Table 8)"),
        (paper_run("locatvit_tiny", "imagenet", {**BOTH, "kernel": "inverse_distance"}), "74.00 (Table 8)"),
        (paper_run("locatvit_tiny", "mini_imagenet", {**BOTH, "alpha": "auto"}, num_classes=100), "78.48 (Table 7)"),
        (
            paper_run("locatvit_base", "mini_imagenet", {**BOTH, "variance": "input"}, num_classes=100),
            "85.18 (Table 7)",
        ),
        (
            paper_run("vit_base_patch16_224", "hfds/timm/mini-imagenet", None, num_classes=100),
            "79.91 (Table 3)",
        ),
        (
            paper_run("swin_base_patch4_window7_224", "imagenet", {**BOTH, "backend": "sdpa"}),
            "83.43 (Table 1)",
        ),
    ],
)
def test_figure_of_the_same_experiment(result, told: str) -> None:
    assert str(paper_figure(result)) == told


@pytest.mark.parametrize(
    "result",
    [
        paper_run("vit_tiny_patch16_224", "scenes"),
        paper_run("vit_scenes", "imagenet"),
        paper_run("vit_tiny_patch16_224.augreg_in21k", "imagenet"),
        paper_run("vit_tiny_patch16_224", "imagenet", None, pretrained=True),
        paper_run("vit_tiny_patch16_224", "cifar100", None, img_size=32, patch_size=4),
        paper_run("vit_tiny_patch16_224", "imagenet", {**BOTH, "start": "identity"}),
        paper_run("vit_tiny_patch16_224", "imagenet", {**BOTH, "not_yet_invented": 1}),
        paper_run("vit_small_patch16_224", "imagenet"),
        paper_run("locatvit_tiny", "mini_imagenet", {**BOTH, "variance": 4.0}),
        paper_run("locatvit_tiny", "mini_imagenet", {**BOTH, "kernel": "laplace"}),
        paper_run("locatvit_tiny", "imagenet", {**BOTH, "kernel": "laplace", "alpha": "none"}),
        paper_run("locatswin_tiny", "imagenet", {**BOTH, "kernel": "laplace"}),
        paper_run("locatswin_tiny", "imagenet", {"gaug": True, "prr": False}),
        paper_run("vit_tiny_patch16_224", "cifar100", {"gaug": True, "prr": False}),
        replace(paper_run("vit_tiny_patch16_224", "imagenet"), protocol="knn"),
    ],
)
def test_no_figure_for_another_experiment(result) -> None:
    assert paper_figure(result) is None


def test_segmentation_needs_an_imagenet_backbone() -> None:
    run = paper_run("locatvit_tiny", "ade20k", BOTH)
    run = replace(run, task="segmentation", protocol="locat", metrics={"miou": 0.2})
    figure = paper_figure(run)
    assert figure is not None
    assert (figure.percent, figure.metric) == (23.47, "miou")
    other = replace(run, model={**run.model, "kwargs": {"num_classes": 100}})
    assert paper_figure(other) is None


def test_backbone_and_twin_share_a_name() -> None:
    assert backbone_name("vit_tiny_patch16_224") == backbone_name("locatvit_tiny")
    assert backbone_name("locatvit_tiny_reg4") != backbone_name("locatvit_tiny")
    assert backbone_name("my_vit") == "my_vit"
