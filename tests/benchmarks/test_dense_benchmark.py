"""The benchmark of dense evaluation on tiny shapes: it runs, refuses what is wrong, and extrapolates nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.dense import __main__ as program  # noqa: E402
from benchmarks.dense import miou, report, search  # noqa: E402
from benchmarks.dense.cases import MiouCase, SearchCase, cases  # noqa: E402
from benchmarks.dense.outcome import Outcome  # noqa: E402

from locatvit.errors import LocAtError  # noqa: E402
from locatvit.evaluation.retrieval import Neighbours  # noqa: E402

CPU = torch.device("cpu")
MIOU = MiouCase("miou-tiny", image_size=(31, 43), num_classes=7, num_images=12, num_distinct=3)
SEARCH = SearchCase("search-tiny", num_images=8, num_rows=3001, width=24, images_a_turn=1, turns=2)


def _ignore(what: str) -> None:
    pass


def test_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "cases", lambda device_type, quick: (MIOU, SEARCH))
    assert program.main(["--device", "cpu", "--threads", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    (markdown,), (numbers,) = (list(tmp_path.glob(f"*.{end}")) for end in ("md", "json"))
    assert markdown.name.startswith("dense_cpu-1-thread_")
    assert str(markdown) in shown
    text = markdown.read_text()
    assert "`python -m benchmarks.dense --seconds 60 --threads 1`: cpu, 1 thread (" in text
    assert "| miou-tiny | locatvit | 12 of 12 |" in text
    assert "| search-tiny | locatvit | 392 of 1,568 | - |" in text
    assert "8 x 196 queries in a memory of 3,001 x 24, k = 30, 196 queries a call; 392 of them measured." in text
    outcomes = json.loads(numbers.read_text())["outcomes"]
    assert {each["contender"] for each in outcomes if each["case"]["level"] == "miou"} == {
        *miou.CONTENDERS, miou.DETERMINISTIC,
    }  # fmt: skip
    assert all(each["total_seconds"] > 0 for each in outcomes if each["why_not"] is None)


def test_a_wrong_miou_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(miou.Numpy):
        def miou(self) -> float:
            return super().miou() + 1e-5

    monkeypatch.setitem(miou.CONTENDERS, "numpy bincount", Wrong)
    with pytest.raises(LocAtError, match="miou-tiny, numpy bincount: the mIoU is .*; no time is reported over a wrong"):
        miou.measure(MIOU, 1, _ignore)


def test_a_wrong_neighbour_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_best(queries: torch.Tensor, neighbours: int) -> Neighbours:
        found = good(queries, neighbours + 1)
        return Neighbours(found.scores[:, 1:], found.indices[:, 1:])

    queries, memory = search.vectors(SEARCH, CPU)
    good = search.contenders(memory)[search.OURS]()
    search.verify(SEARCH, "ours", good, queries, memory)
    with pytest.raises(LocAtError, match="search-tiny, ours: a score is off by .*; no time is reported over a wrong"):
        search.verify(SEARCH, "ours", second_best, queries, memory)


def test_who_has_used_up_the_time_sees_no_more_images() -> None:
    outcomes = {each.contender: each for each in miou.measure(MIOU, 0.0, _ignore)}
    assert {outcomes[name].measured for name in miou.CONTENDERS} == {1}
    assert not outcomes[miou.OURS].is_whole
    # 8 bytes for each of 512 x 683 pixels and 150 x 150 cells
    assert miou._why_not_deterministic(MiouCase("ade")) == "compares every pixel with every cell: 58.6 GiB"
    assert outcomes[miou.DETERMINISTIC].why_not == "compares every pixel with every cell: 0.0 GiB"
    row = report.tables(list(outcomes.values()))["miou"].rows[0]
    assert row[:4] == ("miou-tiny", "locatvit", "1 of 12", "-")


def test_a_row_by_hand() -> None:
    ours = Outcome(SEARCH, "locatvit", (0.196, 0.392), 196, 392)
    other = Outcome(replace(SEARCH), "other", (1.96,), 196, 392)
    rows = report.tables([ours, other])["search"].rows
    assert rows[0][:5] == ("search-tiny", "locatvit", "392 of 392", "0.6", "1.50")
    assert rows[0][-1] == "1.00"
    assert rows[1] == ("search-tiny", "other", "196 of 392", "-", "10.0", "10.0 to 10.0", "6.67")


def test_cases_are_those_that_are_asked_for() -> None:
    counting, retrieval = cases("cpu", quick=False)
    assert isinstance(counting, MiouCase)
    assert isinstance(retrieval, SearchCase)
    assert (counting.num_images, counting.image_size, counting.num_classes) == (2000, (512, 683), 150)
    assert (retrieval.num_queries, retrieval.num_rows, retrieval.width) == (196_000, 1_000_000, 192)
    assert retrieval.measured_queries < retrieval.num_queries
    on_gpu = cases("cuda", quick=False)[1]
    assert isinstance(on_gpu, SearchCase)
    assert on_gpu.queries_a_turn == on_gpu.num_queries
    assert {case.level for case in cases("cpu", quick=True)} == {"miou", "search"}


def test_help_and_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.dense", "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0
    assert "--quick" in finished.stdout
    assert program.main(["--device", "gpu"]) == 2
    assert "error: device is 'gpu', which is not here: " in capsys.readouterr().err
