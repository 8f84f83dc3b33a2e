import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.cases import CASES, Case  # noqa: E402

from benchmarks import measure, models  # noqa: E402
from locatvit.errors import LocAtError  # noqa: E402

SMALL = Case("test_vit", 160, 2, train=True, time_target=1.07)


def _run(*arguments):
    command = [sys.executable, "-m", "benchmarks.models", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_help_names_every_case():
    finished = _run("--help")
    assert finished.returncode == 0
    assert all(case.name in finished.stdout for case in CASES)


def test_an_unknown_case_is_named():
    finished = _run("--only", "tiny-244-train")
    assert finished.returncode == 2
    assert finished.stderr.strip().startswith("error: case 'tiny-244-train' is unknown; did you mean tiny-224-train")


def test_both_models_have_the_same_weights():
    plain, images = measure.make(SMALL, "plain")
    locat, same_images = measure.make(SMALL, "locat")
    state = locat.state_dict()
    assert torch.equal(images, same_images)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_a_wrong_backend_is_refused(monkeypatch):
    from locatvit.ops.attention import sdpa

    run = sdpa.PiecewiseAttention.apply
    measure.verify(SMALL)
    monkeypatch.setattr(sdpa.PiecewiseAttention, "apply", lambda *args: run(*args) * 1.001)
    with pytest.raises(LocAtError, match="tiny|test.*is off by .*no time is reported over a wrong result"):
        measure.verify(SMALL)


def test_report(tmp_path):
    rows = []
    for ratio in (1.05, 1.10):
        plain, locat = [0.1] * 5, [0.1 * ratio] * 5
        row = {"case": SMALL, "plain": plain, "locat": locat, "ratio": ratio, "spread": (ratio, ratio)}
        rows.append(row | {"peak": [100 << 20, 110 << 20]})
    table, data = models._write(rows, 2, tmp_path)
    lines = table.read_text().splitlines()
    assert "| 100.0 | 105.0 | 1.050 | 1.050 - 1.050 | 1.07 met | 100 | 110 | 1.100 | no target |" in lines[-2]
    assert "1.07 missed by 0.030" in lines[-1]
    assert json.loads(data.read_text())["cases"][0]["case"]["model"] == "test_vit"


def test_times_are_taken_by_turns():
    plain, locat = measure.times(SMALL, seconds=0.1)
    assert len(plain) == len(locat) >= 5
    assert min(plain + locat) > 0
