"""Dense retrieval in tables and beside the paper's Table 4."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import BOTH, classification, paper_run, segmentation, write_run

from locatvit.report.paper import paper_figure
from locatvit.report.runs import report_runs
from locatvit.report.tables import difference_table, results_table
from locatvit.results import Result

VOC = {"name": "voc2012", "split": "val", "images": 1449, "classes": 21, "memory_images": 10_582}


def hummingbird(miou: float, protocol: str = "hummingbird", **changes: object) -> Result:
    found = segmentation(miou, protocol={"protocol": protocol, "temperature": 0.02})
    return replace(found, task="hummingbird", protocol=protocol, metrics={"miou": miou}, **changes)


def table4(name: str, locat: dict | None, data: dict = VOC, **changes: object) -> Result:
    result = replace(paper_run(name, "voc2012", locat), data=data, task="hummingbird", protocol="hummingbird_locat")
    return replace(result, **changes)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (table4("vit_tiny_patch16_224", None), "39.20 (Table 4)"),
        (table4("locatvit_tiny", BOTH), "50.30 (Table 4)"),
        (table4("locatswin_base", BOTH), "62.80 (Table 4)"),
        (table4("jumbo_base", None), "58.50 (Table 4)"),
        (table4("locatvit_base_rope_mixed", BOTH, {"name": "ade20k", "memory_images": 20_210}), "23.70 (Table 4)"),
    ],
)
def test_the_papers_figure(result: Result, told: str) -> None:
    assert str(paper_figure(result)) == told


@pytest.mark.parametrize(
    "result",
    [
        table4("locatvit_tiny", BOTH, protocol="hummingbird"),
        table4("locatvit_tiny", BOTH, changed={"protocol.neighbours": 20}),
        table4("locatvit_tiny", BOTH, {**VOC, "memory_images": 1464}),
        table4("locatvit_tiny", BOTH, {**VOC, "name": "camvid"}),
        table4("locatvit_small", BOTH),
        table4("locatvit_tiny", {"gaug": True, "prr": False}),
    ],
)
def test_no_figure_for_another_experiment(result: Result) -> None:
    assert paper_figure(result) is None


def test_each_protocol_has_a_row_that_names_it() -> None:
    results = [classification(0.9), segmentation(0.5), hummingbird(0.4), hummingbird(0.45, "hummingbird_locat")]
    table = results_table(results)
    place = table.columns.index("mIoU (%)")
    found = {row[0]: row[place] for row in table.rows}
    assert found == {
        "ViT": "-",
        "ViT (locat)": "50.00",
        "ViT (hummingbird)": "40.00",
        "ViT (hummingbird_locat)": "45.00",
    }
    assert results_table([hummingbird(0.4)]).rows[0][0] == "ViT (hummingbird)"
    together = results_table([classification(0.9), hummingbird(0.4)]).rows
    assert [row[0] for row in together] == ["ViT (hummingbird)"]


def test_as_before_where_the_paper_s_protocol_is_alone() -> None:
    assert [row[0] for row in results_table([classification(0.9), segmentation(0.5)]).rows] == ["ViT"]


def test_what_locat_adds_is_told_by_protocol() -> None:
    results = [
        make(score, locat)
        for locat, better in ((None, 0.0), (BOTH, 0.1))
        for make, score in (
            (lambda miou, locat: segmentation(miou, locat=locat), 0.5 + better),
            (
                lambda miou, locat: replace(hummingbird(miou), model=segmentation(0, locat=locat).model),
                0.3 + 2 * better,
            ),
        )
    ]
    table = difference_table(results)
    assert table is not None
    assert {row[0]: row[table.columns.index("mIoU")] for row in table.rows} == {
        "ViT (locat)": "+10.00", "ViT (hummingbird)": "+20.00",
    }  # fmt: skip


def test_classes_are_told_by_protocol(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one", segmentation(0.5)), write_run(tmp_path / "two", hummingbird(0.4))]
    page = report_runs(runs)
    assert "## Classes of scenes, protocol locat\n" in page
    assert "## Classes of scenes, protocol hummingbird\n" in page
    assert "## Classes of scenes\n" in report_runs(runs[:1])
