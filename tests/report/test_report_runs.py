"""From run folders to a report, and what report may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import BOTH, classification, segmentation, write_run

import locatvit.report
from locatvit.errors import LocAtError
from locatvit.report.runs import curve_pictures, read_runs, report_runs, write_runs_report

ROWS = [
    {"update": 1, "epoch": 1, "train_loss": 2.0, "top1": 0.1},
    {"update": 2, "epoch": 2, "train_loss": 1.0, "top1": 0.3},
]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = {
        "vit-0": (classification(0.3), ROWS),
        "vit-1": (classification(0.4, seed=1), ROWS),
        "locat-0": (classification(0.5, locat=BOTH), ROWS),
        "locat-1": (classification(0.6, locat=BOTH, seed=1), ROWS),
        "vit-0-seg": (segmentation(0.2), None),
        "locat-0-seg": (segmentation(0.25, locat=BOTH), None),
    }
    return [write_run(tmp_path / name, *run) for name, run in made.items()]


def test_markdown_report(runs: list[Path], tmp_path: Path) -> None:
    text = report_runs(runs)
    assert "| ViT | none | scenes | 712,330 | 35.00 ± 7.07 | 20.00 | 50.00 | 2, 1 | - |" in text
    assert "| ViT | GAug + PRR | scenes | +20.00 ± 0.00 | +5.00 | +0.00 | 2, 1 |" in text
    assert "| disc | 20.00 | 25.00 |" in text
    assert "## How this was made" in text
    assert str(tmp_path) not in text


def test_html_report_has_curves_and_bars(runs: list[Path], tmp_path: Path) -> None:
    path = write_runs_report(runs, tmp_path / "out" / "report.html")
    text = path.read_text(encoding="utf-8")
    assert text.count("<img ") == 2
    assert "Thin lines: single seeds" in text
    assert "35.00 ± 7.07" in text
    assert str(tmp_path) not in text


def test_markdown_file_is_the_same_text(runs: list[Path], tmp_path: Path) -> None:
    path = write_runs_report(runs, tmp_path / "report.md")
    assert path.read_text(encoding="utf-8") == report_runs(runs)


def test_a_folder_given_twice_counts_once(runs: list[Path]) -> None:
    assert report_runs([*runs, runs[0], runs[0] / ".." / runs[0].name]) == report_runs(runs)


def test_runs_without_metric_rows_have_no_curves(runs: list[Path]) -> None:
    assert curve_pictures(read_runs(runs[-2:])) == ()
    (picture,) = curve_pictures(read_runs(runs))
    assert "ViT + LocAt" in picture.alt


def test_what_is_no_run_is_told(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LocAtError, match=r"no result\.json at .*empty.*; has the run ended"):
        report_runs([runs[0], tmp_path / "empty"])
    with pytest.raises(LocAtError, match="0 run folders given"):
        report_runs([])
    with pytest.raises(LocAtError, match=r"'report.pdf'; its name must end in \.html or \.md"):
        write_runs_report(runs, tmp_path / "report.pdf")


def test_report_imports_row_0_alone_and_plots_at_its_address() -> None:
    row_0 = {"config", "errors", "results", "storage", "report"}
    for path in Path(locatvit.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] != "torch", path
                assert not name.startswith("matplotlib") or path.name in ("figures.py", "lettering.py"), path
                assert not name.startswith("locatvit.") or name.split(".")[1] in row_0, path


def test_a_report_needs_no_torch_and_tables_no_plotting(runs: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from locatvit.report.runs import report_runs, write_runs_report\n"
        f"dirs = {[str(run) for run in runs]!r}\n"
        "report_runs(dirs); assert 'matplotlib' not in sys.modules\n"
        f"write_runs_report(dirs, {str(tmp_path / 'r.html')!r})\n"
        "assert not {'torch', 'timm', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
