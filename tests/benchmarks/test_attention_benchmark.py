"""The benchmark of attention on tiny shapes: it runs, it refuses what is wrong, and its arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import formulas

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.attention import __main__ as program  # noqa: E402
from benchmarks.attention import cases as data  # noqa: E402
from benchmarks.attention import dense, limits, measure, model, op, plots, refinement, report  # noqa: E402
from benchmarks.attention.cases import ModelCase, OpCase, RefinementCase, WindowCase, cases  # noqa: E402
from benchmarks.attention.contenders import DENSE, PLAIN, taking_part  # noqa: E402
from benchmarks.attention.dense import dense_attention  # noqa: E402

from locatvit.analysis.timing import Spread  # noqa: E402
from locatvit.errors import LocAtError  # noqa: E402
from locatvit.ops import BACKENDS  # noqa: E402
from locatvit.ops.attention import Backend, Request  # noqa: E402

CPU = torch.device("cpu")
OP = OpCase("tiny", (3, 5), 2, train=True, num_heads=3, head_dim=16, calls=2)
LARGER = replace(OP, grid_size=(7, 5))
WINDOWS = WindowCase("swin", (3, 5), 6, True, num_heads=2, head_dim=16, num_prefix_tokens=0, num_windows=3)
PRR = RefinementCase("tiny", (3, 5), 2, train=True, head_dim=8, calls=2)
MODEL = ModelCase("tiny", (10, 10), 2, train=True, model="test_vit", image_size=160, time_target=1.07)
HALF = {"precision": "bfloat16"}


def _ignore(part: str) -> None:
    pass


def _spoiled(change: Callable[[Tensor, Tensor], Tensor]) -> Backend:
    """The ``sdpa`` backend with its output changed; the change also gets the variance."""
    run = BACKENDS["sdpa"].run_gaussian
    assert run is not None
    spoiled = replace(BACKENDS["sdpa"], run_gaussian=lambda *inputs: change(run(*inputs), inputs[3].variance))
    return replace(spoiled, run_predicted=None)  # which models would take


def _wrong_gradient(output: Tensor, variance: Tensor) -> Tensor:
    nothing = variance.mean() - variance.mean().detach()
    return output + 1e-2 * nothing


WRONG = {
    "output": _spoiled(lambda output, _: output * 1.001),
    "gradient of variance": _spoiled(_wrong_gradient),
}


def test_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "cases", lambda device_type: (OP, LARGER, PRR))
    monkeypatch.setitem(data.DENSE_BYTES, "cpu", 0)  # the dense forms have tests of their own; this saves processes
    arguments = ["--device", "cpu", "--seconds", "0.01", "--threads", "1", "--out", str(tmp_path)]
    assert program.main(arguments) == 0
    shown = capsys.readouterr().out
    (markdown,), (figure,), (numbers,) = (list(tmp_path.glob(f"*.{end}")) for end in ("md", "svg", "json"))
    assert markdown.name.startswith("attention_cpu-1-thread_")
    assert figure.name == f"{markdown.stem}_op-tiny.svg"
    assert all(str(path) in shown for path in (markdown, figure, numbers))
    text = markdown.read_text()
    assert "`python -m benchmarks.attention --seconds 0.01 --threads 1`: cpu, 1 thread (" in text
    assert f"![Attention alone]({figure.name})" in text
    for name, contender in [
        ("op-tiny-15-train", "sdpa"),
        ("op-tiny-35-train", PLAIN),
        ("prr-tiny-15-train", "[CLS] row"),
    ]:
        assert f"| {name} | {contender} |".replace("[", r"\[").replace("]", r"\]") in text
    found = json.loads(numbers.read_text())
    assert set(found["environment"]) == {"versions", "commit", "device", "date", "processor", "precision"}
    assert [(each["case"]["name"], each["contender"]) for each in found["outcomes"]] == [
        ("op-tiny-15-train", PLAIN), ("op-tiny-15-train", "sdpa"),
        ("op-tiny-35-train", PLAIN), ("op-tiny-35-train", "sdpa"),
        ("prr-tiny-15-train", "all rows"), ("prr-tiny-15-train", "[CLS] row"),
    ]  # fmt: skip
    for each in found["outcomes"]:
        assert each["seconds"]["count"] >= 5
        assert 0 < each["seconds"]["low"] <= each["seconds"]["median"] <= each["seconds"]["high"]
        assert each["peak_bytes"] is None or each["peak_bytes"] > 0
        assert each["why_not"] is None


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backend_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "cases", lambda device_type: (OP,))
    monkeypatch.setitem(BACKENDS, "sdpa", WRONG[name])
    assert program.main(["--device", "cpu", "--out", str(tmp_path / "results")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: op-tiny-15-train, sdpa: the {name} is off by " in captured.err
    assert "no time is reported over a wrong result: run the tests of the op first" in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", [OP, LARGER, WINDOWS, replace(OP, **HALF), replace(WINDOWS, **HALF)], ids=str)
@pytest.mark.parametrize("train", [False, True])
def test_what_takes_part_is_right(case: OpCase, train: bool) -> None:
    case = replace(case, train=train)
    names = [name for name in op.contenders(case, CPU) if name != "flex"]  # it compiles for seconds; see test_flex.py
    assert names == [PLAIN, "sdpa", "reference", DENSE]
    for name in names[1:]:
        op.verify(case, name, CPU)


def test_a_few_heads_are_compared_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_CHECKED_WHOLE", 0)
    case = replace(OP, batch_size=3)
    assert op._pairs(case, CPU).tolist() == [0, 3, 5, 8]
    op.verify(case, "sdpa", CPU)
    last_head_wrong = _spoiled(lambda output, _: output + 0.1 * (torch.arange(9) == 8).view(3, 3, 1, 1))
    monkeypatch.setitem(BACKENDS, "sdpa", last_head_wrong)
    with pytest.raises(LocAtError, match="op-tiny-15-train, sdpa: the output is off by"):
        op.verify(case, "sdpa", CPU)


@pytest.mark.parametrize(("grid_size", "prefix"), [((3, 5), 1), ((7, 2), 0), ((5, 3), 4)])
def test_the_dense_bias_is_the_formula(grid_size: tuple[int, int], prefix: int) -> None:
    patches = grid_size[0] * grid_size[1]
    q, k, v = torch.randn(3, 2, 3, patches + prefix, 13, dtype=torch.float64).unbind(0)
    variance, alpha = 0.2 + 3 * torch.rand(2, 3, patches, 2, dtype=torch.float64), torch.rand(2, 3, patches).double()
    attn_bias = torch.randn(1, 3, patches + prefix, patches + prefix, dtype=torch.float64)
    out = dense_attention(q, k, v, variance, alpha, attn_bias, grid_size=grid_size, num_prefix_tokens=prefix)
    bias = formulas.supplement(variance, alpha, *grid_size, prefix) + attn_bias
    torch.testing.assert_close(out, formulas.attention(q, k, v, bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [MODEL, replace(MODEL, **HALF), replace(MODEL, train=False)], ids=str)
def test_models(case: ModelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender is right and runs; one that is wrong is refused."""
    names = [name for name in model.contenders(case, CPU) if name != "flex"]
    assert names == [PLAIN, "sdpa", "reference", DENSE]
    for name in names:
        if name != PLAIN:
            model.verify(case, name, CPU)
        model.make_step(case, name, CPU)()
    monkeypatch.setitem(BACKENDS, "sdpa", _spoiled(lambda output, _: output * 1.05))
    with pytest.raises(LocAtError, match="model-tiny-160.*, sdpa: the .* is off by"):
        model.verify(case, "sdpa", CPU)


def test_all_models_of_a_case_have_the_same_weights() -> None:
    plain, *others = (model.make_model(MODEL, name).state_dict() for name in (PLAIN, "sdpa", DENSE))
    for state in others:
        assert all(torch.equal(value, state[name]) for name, value in plain.items())
    assert all(torch.equal(value, others[1][name]) for name, value in others[0].items())


@pytest.mark.parametrize("case", [PRR, replace(PRR, train=False), replace(PRR, **HALF)], ids=str)
def test_refinement(case: RefinementCase, monkeypatch: pytest.MonkeyPatch) -> None:
    refinement.verify(case, refinement.ROW, CPU)
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda q, k, v, **options: attend(q, k, v, **options) * (1.03 if q.shape[2] == 1 else 1.0),
    )  # fmt: skip
    with pytest.raises(LocAtError, match=r"prr-tiny-15-.*, \[CLS\] row: the output is off by"):
        refinement.verify(case, refinement.ROW, CPU)


def test_what_needs_too_much_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*inputs: object) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setitem(BACKENDS, "huge", Backend("huge", lambda request: None, run))
    monkeypatch.setattr(measure, "peak_memory", lambda *arguments, device: 100)  # the other process has no such backend
    unable = measure.verify(OP, CPU, _ignore)
    assert unable == {"huge": "needs more memory than there is"}
    outcomes = {each.contender: each for each in measure.measure(OP, CPU, 0.01, unable, _ignore)}
    assert list(outcomes) == [PLAIN, "sdpa", "reference", "huge", DENSE]
    assert outcomes["huge"].why_not == "needs more memory than there is"
    assert outcomes["sdpa"].why_not is None
    text = report.tables(list(outcomes.values()))["op"].to_markdown()
    assert "| op-tiny-15-train | huge | 2 | - | - | - | - | needs more memory than there is | - | - |" in text


def test_backends_by_preference_and_what_is_left_out() -> None:
    request = Request("cuda", torch.bfloat16, 64, 1025, 1, (32, 32), needs_grad=True)
    case = next(case for case in cases("cuda") if case.name == "op-tiny-1024-train")
    assert taking_part(case, [request]) == (PLAIN, "triton", "sdpa", "flex", DENSE)
    assert taking_part(replace(case, batch_size=10_000), [request]) == (PLAIN, "triton", "flex")
    on_cpu = replace(request, device_type="cpu", needs_grad=False)
    assert taking_part(replace(case, batch_size=1), [on_cpu]) == (PLAIN, "sdpa", "flex", DENSE)
    small = replace(case, batch_size=1, grid_size=(7, 7))
    assert taking_part(small, [on_cpu, replace(on_cpu, needs_grad=True)]) == (PLAIN, "sdpa", "reference", DENSE)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_cases(device_type: str) -> None:
    """Names are unique, every level is there in both passes, and the targets are the project's."""
    known = cases(device_type)
    assert len({case.name for case in known}) == len(known)
    assert {(case.level, case.train) for case in known} == {
        (level, t) for level in report.TITLES for t in (False, True)
    }
    assert {case.num_patches for case in known if case.level == "op"} == {196, 1024, 4096}
    assert all(case.precision == ("float32" if device_type == "cpu" else "bfloat16") for case in known)
    targets = {case.name: (case.time_target, case.memory_target) for case in known if isinstance(case, ModelCase)}
    if device_type == "cpu":
        assert targets["model-tiny-1024-forward"] == (1.25, 1.15)
        assert targets["model-base-224-train"] == (1.03, None)
    else:
        assert {value for name, value in targets.items() if name.endswith("train")} == {(1.05, 1.05)}
        assert {case.image_size for case in known if isinstance(case, ModelCase)} == {224, 512, 1024}


def test_choosing() -> None:
    known = cases("cpu")
    assert program.choose(known, None, quick=False) == list(known)
    assert {case.level for case in program.choose(known, ["prr"], quick=False)} == {"prr"}
    assert [case.name for case in program.choose(known, ["model-tiny-1024"], quick=False)] == [
        "model-tiny-1024-forward"
    ]
    quick = program.choose(known, None, quick=True)
    assert {case.level for case in quick} == set(report.TITLES)
    assert all(data.is_quick(case) for case in quick)
    with pytest.raises(LocAtError, match="case 'model-tini-224' is unknown; did you mean .*model-tiny-224"):
        program.choose(known, ["model-tini-224"], quick=False)
    with pytest.raises(LocAtError, match="--quick has none of model-base; leave one of --quick and --only out"):
        program.choose(known, ["model-base"], quick=True)


def test_the_least_that_a_step_takes() -> None:
    """Two pairs of 16 tokens with heads 16 wide, 15 of them patches."""
    case = replace(OP, batch_size=1, num_heads=2, train=False)
    plain, ours = (limits.work(case, name, itemsize=2) for name in (PLAIN, "triton"))
    assert plain == limits.Work(operations=2 * 2 * 2 * 16 * 16 * 16, bytes=4 * 2 * 2 * 16 * 16)
    assert ours == limits.Work(plain.operations, plain.bytes + 2 * 15 * 3 * 4)
    training = limits.work(replace(case, train=True), "triton", itemsize=2)
    assert training == limits.Work(plain.operations * 7 / 2, 3 * plain.bytes + 3 * 2 * 15 * 3 * 4)
    windows = replace(WINDOWS, train=False)
    assert limits.work(windows, PLAIN, 2).bytes == 4 * 2 * 6 * 2 * 15 * 16 + 2 * 3 * 2 * 15 * 15
    assert limits.work(PRR, "all rows", 2) is None
    forward = limits.work(replace(MODEL, train=False), PLAIN, 2)
    assert limits.work(MODEL, PLAIN, 2).operations == 3 * forward.operations > 0
    h200 = limits.DEVICES["NVIDIA H200"]
    assert limits._seconds(limits.Work(989e12, 0), h200) == 1
    assert limits._seconds(limits.Work(1, 9.6e12), h200) == 2
    assert limits.least_seconds(OP, PLAIN, CPU) is None


def _outcome(contender: str, ratio: float, peak: int, least: float | None = None) -> measure.Outcome:
    seconds, spread = (0.1 * ratio,) * 5, Spread(ratio, ratio - 0.01, ratio + 0.01, 5)
    return measure.Outcome(replace(MODEL, memory_target=1.15), contender, seconds, spread, peak << 20, least)


def test_tables_and_targets() -> None:
    outcomes = [_outcome(PLAIN, 1.0, 100), _outcome("triton", 1.10, 110), _outcome(DENSE, 1.9, 300)]
    row = report.tables(outcomes)["model"].rows[1]
    assert row == (
        "model-tiny-160-train", "triton", "2", "5",
        "110.0", "110.0 to 110.0", "1.100", "1.090 to 1.110", "110", "1.100",
    )  # fmt: skip
    targets = report.targets_table(outcomes)
    assert targets is not None
    assert targets.rows == (
        ("model-tiny-160-train", "triton", "time", "1.07", "1.100", "missed by 0.030"),
        ("model-tiny-160-train", "triton", "memory", "1.15", "1.100", "met"),
    )
    assert report.targets_table([replace(each, case=OP) for each in outcomes]) is None
    limited = report.tables([_outcome(PLAIN, 1.0, 100, least=0.08), _outcome("triton", 1.25, 110, least=0.1)])["model"]
    assert limited.columns[-1] == "of the limit"
    assert [row[-1] for row in limited.rows] == ["0.80", "0.80"]


def test_figures_are_drawn_of_several_sizes(tmp_path: Path) -> None:
    outcomes = [
        replace(_outcome(name, ratio, peak), case=replace(OP, grid_size=(side, side), train=train))
        for side in (14, 32)
        for train in (False, True)
        for name, ratio, peak in ((PLAIN, 1.0, 100), ("sdpa", 1.1, 110), (DENSE, 3.0, 900))
    ]
    one_size = [replace(each, case=replace(each.case, family="base")) for each in outcomes[:6]]
    (figure,) = plots.write_figures([*outcomes, *one_size], tmp_path / "x")
    assert figure == tmp_path / "x_op-tiny.svg"
    drawn = plots.draw(outcomes)
    lines = {line.get_label(): line for line in drawn.axes[0].get_lines()}
    assert set(lines) == {PLAIN, "sdpa", DENSE}
    assert list(lines["sdpa"].get_xdata()) == [196, 1024]
    assert list(lines["sdpa"].get_ydata()) == pytest.approx([110 / OP.batch_size] * 2)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [PLAIN, "LocAt, sdpa", DENSE]


def test_help_names_every_case_and_an_unknown_device_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.attention", "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0
    words = " ".join(finished.stdout.split()).replace("- ", "-")
    assert all(case.name in words for case in (*cases("cpu"), *cases("cuda")))
    assert program.main(["--device", "gpu"]) == 2
    assert "error: device is 'gpu', which is not here: " in capsys.readouterr().err


def test_the_dense_model_makes_its_bias_by_the_dense_formula() -> None:
    """And is no second measurement of ours."""
    dense_differences = dense._squared_differences
    dense_differences.cache_clear()
    model.make_step(replace(MODEL, train=False), DENSE, CPU)()
    assert dense_differences.cache_info().misses == 1
