from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from rich.console import Console
from tiny_run import CONFIG, ColourImages, EpochDataLoader, train_tiny
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.results import read_metrics
from locatvit.training.checkpoint import (
    best_path,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    read_weights,
)
from locatvit.training.display import Display
from locatvit.training.loop import FitReport, fit
from locatvit.training.optim import one_cycle_schedule
from locatvit.training.runtime import make_accelerator, seed_everything


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.equal(b) for a, b in pairs)


def rows_without_time(folder: Path) -> list[dict[str, Any]]:
    clocks = ("images_per_second", "seconds")
    return [{key: value for key, value in row.items() if key not in clocks} for row in read_metrics(folder)]


def run_alone(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, tiny_run.__file__, str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


class Regression:
    """A small model of the images' mean colour, with dropout; its loss may be meddled with."""

    def __init__(self, meddle: Callable[[int, nn.Module, Tensor], Tensor] | None = None) -> None:
        seed_everything(3)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.Linear(5, 1))
        self.meddle, self.update, self.seen = meddle, 0, []

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = (model(images.mean(dim=(2, 3)))[:, 0] - labels.float()).square().mean()
        self.update += 1
        self.seen.append(loss.item())
        return loss if self.meddle is None else self.meddle(self.update, model, loss)

    def fit(
        self, folder: Path, *, loader: EpochDataLoader | None = None, precision: str = "no", **options: Any
    ) -> FitReport:
        num_updates = 12
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        return fit(
            model=self.model, loss_fn=self.loss, loader=loader or tiny_run.train_loader(),
            optimizer=optimizer, scheduler=one_cycle_schedule(optimizer, num_updates=num_updates),
            num_updates=num_updates, run_dir=folder, accelerator=make_accelerator(precision), **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A run of 20 updates without interruption: model and metric rows."""
    folder = tmp_path_factory.mktemp("unbroken")
    model, _ = train_tiny(folder)
    return model, rows_without_time(folder)


def test_two_runs_are_equal_bit_for_bit_whatever_was_drawn_before_and_whoever_loads(
    unbroken: tuple[nn.Module, list[dict[str, Any]]], tmp_path: Path
) -> None:
    seed_everything(99)
    model, _ = train_tiny(tmp_path / "again", num_workers=2)
    assert same(model, unbroken[0])
    assert rows_without_time(tmp_path / "again") == unbroken[1]
    other, _ = train_tiny(tmp_path / "other", config=dataclasses.replace(CONFIG, seed=43))
    assert not same(other, unbroken[0])


def test_a_run_killed_twice_and_resumed_equals_one_that_was_not(
    unbroken: tuple[nn.Module, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Killed in update 9, in mid-epoch; resumed at 6, killed while it writes the checkpoint of update 9."""
    killed = run_alone(tmp_path, "--kill-at", "9")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list_checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, 6)
    cut = run_alone(tmp_path, "--cut-at", "3")
    assert cut.returncode == -signal.SIGXFSZ, cut.stderr
    assert list_checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, 6)
    (half,) = checkpoint_path(tmp_path, 9).parent.glob(".*.tmp")
    assert half.stat().st_size == 50_000

    model, _ = train_tiny(tmp_path)
    assert same(model, unbroken[0])
    assert rows_without_time(tmp_path) == unbroken[1]
    assert not half.exists()


@pytest.mark.parametrize("update", [5, 6, 10, 12])
def test_a_run_broken_off_in_any_place_resumes_exactly(
    update: int, unbroken: tuple[nn.Module, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Also from the end of an epoch, where a resumed run opens an iterator that the other does not."""

    def stop(forward: int) -> None:
        if forward == update + 1:
            raise KeyboardInterrupt

    config = dataclasses.replace(CONFIG, checkpoint_every_updates=1)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path, config=config, before=stop)
    assert list_checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, update)
    model, _ = train_tiny(tmp_path, config=config)
    assert same(model, unbroken[0])
    assert rows_without_time(tmp_path) == unbroken[1]


@pytest.mark.slow
def test_two_processes_killed_in_mid_epoch_resume_exactly(tmp_path: Path) -> None:
    """Two updates an epoch for each process; killed in update 4, resumed at 3, the middle of epoch 2."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for folder, options in (("whole", ()), ("broken", ("--kill-at", "4")), ("broken", ())):
        ended = run_alone(tmp_path / folder, *options, launcher=launcher)
        assert (ended.returncode == 0) == (options == ()), ended.stderr
    whole, broken = (read_checkpoint(checkpoint_path(tmp_path / folder, 8)) for folder in ("whole", "broken"))
    assert whole["fingerprint"]["num_processes"] == 2
    assert all(weight.equal(broken["model"][name]) for name, weight in whole["model"].items())
    assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "broken")
    states = [process["rng"]["torch"] for process in whole["processes"]]
    assert not states[0].equal(states[1])


def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_stands(
    unbroken: tuple[nn.Module, list[dict[str, Any]]], tmp_path: Path
) -> None:
    stopped = run_alone(tmp_path, "--full-at", "8")
    assert stopped.returncode == 1
    message = stopped.stderr.strip().splitlines()[-1]
    assert message.startswith(
        f"locatvit.errors.LocAtError: cannot write {checkpoint_path(tmp_path, 9)}: File too large"
    )
    assert message.endswith(f"the last good checkpoint stands: {checkpoint_path(tmp_path, 6)}")
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, update) for update in (3, 6)]
    assert not list(tmp_path.rglob(".*.tmp"))
    model, _ = train_tiny(tmp_path)
    assert same(model, unbroken[0])


def test_a_truncated_newest_checkpoint_costs_time_but_not_exactness(
    unbroken: tuple[nn.Module, list[dict[str, Any]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_tiny(tmp_path)
    newest, before = checkpoint_path(tmp_path, 20), checkpoint_path(tmp_path, 18)
    newest.write_bytes(newest.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        model, _ = train_tiny(tmp_path)
    assert newest.name in caplog.text
    assert before.name in caplog.text
    assert same(model, unbroken[0])
    assert rows_without_time(tmp_path) == unbroken[1]
    assert read_checkpoint(newest)["progress"]["update"] == 20


def test_another_configuration_or_model_is_not_resumed(tmp_path: Path) -> None:
    train_tiny(tmp_path, fingerprint={"model": "a"})
    with pytest.raises(LocAtError, match=r"differs in lr \(checkpoint 0.003, now 0.004\), model \(checkpoint 'a'"):
        train_tiny(
            tmp_path,
            config=dataclasses.replace(CONFIG, lr=4e-3),
            fingerprint={"model": "b"},
            on_start=lambda done: pytest.fail("the run was refused"),
        )
    changed = dataclasses.replace(CONFIG, num_workers=0, evaluate_every_epochs=2, checkpoint_every_updates=None)
    train_tiny(tmp_path, config=changed, fingerprint={"model": "a"})  # these change no weight
    Regression().fit(tmp_path / "head")
    other = Regression()
    other.model = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 1))
    with pytest.raises(LocAtError, match=r"update-00000012.pt is of another model .*size mismatch"):
        other.fit(tmp_path / "head")


def test_never_begins_again_and_a_path_goes_on_from_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Regression()
    first.fit(tmp_path, checkpoint_every=4)
    again = Regression()
    with caplog.at_level(logging.WARNING):
        report = again.fit(tmp_path, checkpoint_every=4, resume="never")
    assert report.resumed_from == 0
    assert "removing 2 checkpoints" in caplog.text
    assert again.seen == first.seen
    assert [row["update"] for row in read_metrics(tmp_path)] == [5, 10, 12]
    part = Regression()
    report = part.fit(tmp_path, checkpoint_every=4, resume=checkpoint_path(tmp_path, 8))
    assert report.resumed_from == 8
    assert part.seen == first.seen[8:]
    assert same(part.model, first.model)
    with pytest.raises(LocAtError, match=r"no checkpoint at atuo; .* resume='auto'"):
        Regression().fit(tmp_path, resume="atuo")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float, tmp_path: Path) -> None:
    run = Regression(lambda update, model, loss: loss * (value if update == 8 else 1.0))
    weights = []
    run.model.register_forward_pre_hook(lambda *_: weights.append(run.model[0].weight.detach().clone()))
    with pytest.raises(LocAtError) as caught:
        run.fit(tmp_path, checkpoint_every=3)
    message = str(caught.value)
    assert message.startswith(f"the loss is {value} at update 8 (epoch 2, learning rate 0.0")
    assert f"the last good checkpoint stands: {checkpoint_path(tmp_path, 6)}. Lower the learning rate" in message
    assert run.model[0].weight.equal(weights[-1])  # it never touched them
    assert [row["update"] for row in read_metrics(tmp_path)] == [5]
    early = Regression(lambda update, model, loss: loss * value)
    with pytest.raises(LocAtError, match=r"at update 1 .*there is no checkpoint yet"):
        early.fit(tmp_path / "early")


def test_weights_that_are_not_finite_never_become_the_last_good_checkpoint(tmp_path: Path) -> None:
    def explode(update: int, model: nn.Module, loss: Tensor) -> Tensor:
        if update == 6:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    with pytest.raises(LocAtError, match=r"the weights are not finite after update 6 .*update-00000003.pt"):
        Regression(explode).fit(tmp_path, checkpoint_every=3)
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 3)]


def test_rows_means_and_the_best(tmp_path: Path) -> None:
    """Five updates an epoch, twelve in all, an evaluation every four."""
    run, answers = Regression(), iter([0.5, 0.25, 0.75])
    kept = []

    def evaluate() -> dict[str, float]:
        kept.append(run.model[0].weight.detach().clone())
        return {"error": next(answers)}

    report = run.fit(tmp_path, evaluate=evaluate, evaluate_every=4, best_metric="error", higher_is_better=False)
    rows = read_metrics(tmp_path)
    assert [(row["update"], row["epoch"], row.get("error")) for row in rows] == [
        (4, 1, 0.5), (5, 1, None), (8, 2, 0.25), (10, 2, None), (12, 3, 0.75),
    ]  # fmt: skip
    bounds = [0, 4, 5, 8, 10, 12]
    means = [np.mean(run.seen[a:b]) for a, b in itertools.pairwise(bounds)]
    assert [row["train_loss"] for row in rows] == pytest.approx(means)
    assert rows[-1]["lr"] == pytest.approx(1e-10)  # of the update itself: one-cycle's last, 1e-2 / 1e4 / 1e4
    assert rows[-1]["images_per_second"] > 0
    assert rows[-1]["seconds"] >= rows[0]["seconds"]
    assert report == FitReport(
        updates=12, resumed_from=0, metrics={"error": 0.75}, best={"metric": "error", "value": 0.25,
        "update": 8}, best_weights=best_path(tmp_path), checkpoint=checkpoint_path(tmp_path, 12),
        seconds=report.seconds,
    )  # fmt: skip
    assert read_weights(best_path(tmp_path))["0.weight"].equal(kept[1])


def test_bad_answers_of_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=r"error is nan in the evaluation after update 4; there is no checkpoint"):
        Regression().fit(tmp_path / "a", evaluate=lambda: {"error": math.nan}, evaluate_every=4)
    with pytest.raises(LocAtError, match=r"best_metric is 'miou'; the evaluation gives error"):
        Regression().fit(tmp_path / "b", evaluate=lambda: {"error": 1.0}, best_metric="miou")
    run = Regression()
    optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    with pytest.raises(LocAtError, match=r"num_updates is 0; it must be a whole number >= 1"):
        fit(
            model=run.model, loss_fn=run.loss, loader=tiny_run.train_loader(), optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer), num_updates=0, run_dir=tmp_path,
            accelerator=make_accelerator(),
        )  # fmt: skip


def test_evaluating_moves_nothing_in_the_training(tmp_path: Path) -> None:
    rare = Regression()
    rare.fit(tmp_path / "rare")
    often = Regression()
    often.fit(tmp_path / "often", evaluate=lambda: {"noise": torch.rand(()).item()}, evaluate_every=1)
    assert same(rare.model, often.model)


def test_the_model_comes_back_unwrapped_from_bfloat16(tmp_path: Path) -> None:
    run, kinds = Regression(), []
    run.model[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    forward = run.model.forward
    run.fit(tmp_path, precision="bf16")
    assert set(kinds) == {torch.bfloat16}
    assert run.model.forward == forward
    assert run.model[0].weight.dtype == torch.float32


class Forgetful(EpochDataLoader):
    def __len__(self) -> int:
        return super().__len__() + 1


def test_a_loader_that_gives_fewer_batches_than_it_announces(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=r"gave 5 batches in epoch 1 but has len 6"):
        Regression().fit(tmp_path, loader=Forgetful(ColourImages(30), 6))


def test_a_bar_on_a_terminal_and_plain_lines_elsewhere() -> None:
    row = {"update": 3, "epoch": 1, "train_loss": 2.5, "lr": 1e-3, "images_per_second": 12.0, "seconds": 1.0}
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Display("training [b]x[/b]", 10, console=console) as display:
            display.update(3, 2.5, 1e-3, 12.0)
            display.row(row, evaluated=False)
            display.row(row | {"epoch": 2}, evaluated=False)  # too soon for a second line
            display.row(row | {"top1": 0.5}, evaluated=True)
        shown[terminal] = console.file.getvalue()
    line = "training [b]x[/b]: update 3/10, epoch 1, train_loss 2.5, lr 0.001, images_per_second 12"
    assert shown[False] == f"{line}\n{line}, top1 0.5\n"
    assert "3/10" in shown[True]
    assert "loss 2.500  lr 1.00e-03  12 images/s" in shown[True]
    console = Console(file=io.StringIO(), force_terminal=True)
    with Display("training", 10, enabled=False, console=console) as display:
        display.row(row, evaluated=True)
    assert console.file.getvalue() == ""
