"""Complete runs by the command line: what they leave, and that nothing but their configuration decides it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_cli import SCENES, Command, files_of, mask_folder, one_thread, segment, train

import locatvit
from locatvit.cli.main import main
from locatvit.data.camvid import CLASSES
from locatvit.results import read_metrics, read_result
from locatvit.training.checkpoint import list_checkpoints

on_a_cpu = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="bit for bit is promised on a CPU, and an accelerator is here"
)
PLAIN = ("--model.name", "vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def segmented(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished segmentation of scenes with the trained backbone; not to be written to."""
    run_dir = tmp_path_factory.mktemp("segmented") / "scenes"
    with one_thread():
        assert main([str(argument) for argument in segment(run_dir, "--backbone", trained)]) == 0
    return run_dir


def head_of(run_dir: Path) -> bytes:
    return (run_dir / "head.safetensors").read_bytes()


def weights_of(run_dir: Path) -> bytes:
    return (run_dir / "model.safetensors").read_bytes()


def test_what_a_training_leaves(trained: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "model.safetensors", "result.json"} <= set(files_of(trained))
    result = read_result(trained)
    assert (result.task, result.protocol) == ("classification", "classification")
    assert result.model["name"] == "locatvit_tiny"
    assert result.model["label"] == "ViT"
    assert result.model["locat"]["gaug"] is result.model["locat"]["prr"] is True
    assert result.data == {"name": "scenes", "split": "val", "images": 12, "classes": 10}
    assert result.config == yaml.safe_load((trained / "config.yaml").read_text())
    assert result.config["training"]["epochs"] == 2
    assert result.environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result.environment["device"]
    assert result.seconds > 0
    rows = read_metrics(trained)
    assert [row["update"] for row in rows] == [3, 6]
    assert {name: rows[-1][name] for name in result.metrics} == result.metrics
    assert result.metrics["top1"] * 12 == pytest.approx(round(result.metrics["top1"] * 12))


def test_weights_are_there_for_the_library(trained: Path) -> None:
    model = locatvit.create_model(
        "locatvit_tiny", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=10
    )
    locatvit.load_checkpoint(model, trained)
    assert read_result(trained).model["parameters"] == sum(p.numel() for p in model.parameters())


def test_what_is_printed(command: Command, trained: Path, tmp_path: Path) -> None:
    answer = command(*train(tmp_path / "run"))
    assert answer.code == 0
    top1 = read_result(tmp_path / "run").metrics["top1"]
    assert f"{100 * top1:.2f}" in answer.out
    assert f"in {tmp_path}/run: model.safetensors, result.json, metrics.jsonl, config.yaml" in answer.out
    assert f"next: locatvit segment --backbone {tmp_path}/run" in answer.out
    assert "run: update 6/6, epoch 2, train_loss" in answer.err


@on_a_cpu
def test_the_same_seed_gives_the_same_weights_bit_for_bit(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command(*train(tmp_path / "again")).code == 0
    assert weights_of(tmp_path / "again") == weights_of(trained)
    assert read_result(tmp_path / "again").metrics == read_result(trained).metrics
    assert command(*train(tmp_path / "workers", "--training.num_workers", "2")).code == 0
    assert weights_of(tmp_path / "workers") == weights_of(trained)
    assert command(*train(tmp_path / "other", "--training.seed", "43")).code == 0
    assert weights_of(tmp_path / "other") != weights_of(trained)


@on_a_cpu
def test_a_runs_configuration_makes_the_run_again(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command("train", "--config", trained / "config.yaml", "--run_dir", tmp_path / "again").code == 0
    assert weights_of(tmp_path / "again") == weights_of(trained)
    saved, again = (read_result(folder).config for folder in (trained, tmp_path / "again"))
    assert {**saved, "run_dir": None} == {**again, "run_dir": None}


def test_a_run_that_has_ended_is_not_run_again(command: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert command(*train(run_dir)).code == 0
    before = files_of(run_dir)
    answer = command(*train(run_dir))
    assert answer.code == 0
    assert "update" not in answer.err
    assert files_of(run_dir) == before
    # a name for tables touches no weight: the run stands, and takes the name
    assert command(*train(run_dir, "--model.label", "Tiny")).code == 0
    first, renamed = json.loads(before["result.json"]), json.loads(files_of(run_dir)["result.json"])
    assert renamed["model"]["label"] == "Tiny"
    assert (renamed["metrics"], renamed["environment"]) == (first["metrics"], first["environment"])
    assert weights_of(run_dir) == before["model.safetensors"]
    # what was lost after the last checkpoint is made of it
    for name in ("result.json", "model.safetensors"):
        (run_dir / name).unlink()
    assert command(*train(run_dir)).code == 0
    assert weights_of(run_dir) == before["model.safetensors"]
    assert read_result(run_dir).metrics == first["metrics"]
    assert read_metrics(run_dir) == [json.loads(line) for line in before["metrics.jsonl"].splitlines()]


@on_a_cpu
def test_never_begins_again(command: Command, trained: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    answer = command(*train(run_dir, "--resume", "never", "--training.epochs", "1"))
    assert answer.code == 0
    assert read_result(run_dir).config["training"]["epochs"] == 1
    assert [row["update"] for row in read_metrics(run_dir)] == [3]
    assert weights_of(run_dir) != weights_of(trained)


def test_a_run_that_begins_again_and_is_stopped_keeps_no_old_outcome(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    """Else the old result would pass for that of the new run."""
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    wild = ("--training.lr", "1e30", "--training.clip_grad", "null", "--resume", "never")
    assert command(*train(run_dir, *wild)).code == 2
    assert not {"result.json", "model.safetensors"} & set(files_of(run_dir))


@on_a_cpu
def test_going_on_from_a_named_checkpoint(command: Command, trained: Path, tmp_path: Path) -> None:
    run_dir, first = tmp_path / "run", list_checkpoints(trained)[0]
    assert first.name == "update-00000003.pt"
    assert command(*train(run_dir, "--resume", first)).code == 0
    assert weights_of(run_dir) == weights_of(trained)


def test_validate_measures_what_the_training_measured(command: Command, trained: Path, tmp_path: Path) -> None:
    before = files_of(trained)
    answer = command("validate", "--run", trained)
    assert answer.code == 0
    assert f"{100 * read_result(trained).metrics['top1']:.2f}" in answer.out
    assert files_of(trained) == before
    other = command("validate", "--run", trained, "--data.val_options", "{num_images: 1, image_size: 32}")
    assert other.code == 0
    assert "100.00" in other.out or " 0.00" in other.out  # of a single image


def test_validate_measures_a_file_of_weights(command: Command, trained: Path) -> None:
    kwargs = "{img_size: 32, patch_size: 8, depth: 2, embed_dim: 24, num_heads: 2}"
    answer = command(
        "validate",
        "--model.checkpoint",
        trained,
        "--model.kwargs",
        kwargs,
        *SCENES,
        "--augment.image_size",
        "32",
    )
    assert answer.code == 0
    assert f"{100 * read_result(trained).metrics['top1']:.2f}" in answer.out


def test_what_a_segmentation_leaves(trained: Path, segmented: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "head.safetensors", "result.json"} <= set(files_of(segmented))
    result = read_result(segmented)
    assert (result.task, result.protocol) == ("segmentation", "locat")
    assert result.data == {"name": "scenes", "split": "val", "images": 12, "classes": 11}
    assert set(result.metrics) == {"miou", "pixel_accuracy", "boundary_iou"}
    assert result.changed == {"num_updates": 6, "batch_size": 8, "short_side": 32, "crop_size": [32, 32]}
    assert len(result.per_class) == 11
    counted = [iou for iou in result.per_class.values() if iou is not None]
    assert result.metrics["miou"] == pytest.approx(sum(counted) / len(counted))
    assert result.model["checkpoint_run"] == trained.name
    assert len(result.model["weights"]) == 16
    assert result.config["backbone"] == read_result(trained).config["training"]
    assert result.config["protocol"]["num_updates"] == 6
    head = load_file(segmented / "head.safetensors")
    assert head["layers.0.weight"].shape == (512, 24, 1, 1)
    assert head["layers.3.weight"].shape == (11, 512, 1, 1)


def test_the_backbone_is_left_as_it_was(trained: Path, tmp_path: Path, command: Command) -> None:
    before = files_of(trained)
    assert command(*segment(tmp_path / "s", "--backbone", trained)).code == 0
    assert files_of(trained) == before


@on_a_cpu
def test_a_segmentation_is_repeatable(command: Command, trained: Path, segmented: Path, tmp_path: Path) -> None:
    assert command(*segment(tmp_path / "again", "--backbone", trained)).code == 0
    assert head_of(tmp_path / "again") == head_of(segmented)
    from_config = ("segment", "--config", segmented / "config.yaml", "--run_dir", tmp_path / "config")
    assert command(*from_config).code == 0
    assert head_of(tmp_path / "config") == head_of(segmented)
    assert read_result(tmp_path / "config").per_class == read_result(segmented).per_class


def test_a_segmentation_that_has_ended_is_not_run_again(
    command: Command, trained: Path, segmented: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert command(*segment(run_dir, "--backbone", trained)).code == 0
    before = files_of(run_dir)
    answer = command(*segment(run_dir, "--backbone", trained))
    assert answer.code == 0
    assert "update" not in answer.err
    assert files_of(run_dir) == before
    # the outcome is lost: the checkpoint's head is measured, and not a new one
    for name in ("result.json", "head.safetensors"):
        (run_dir / name).unlink()
    assert command(*segment(run_dir, "--backbone", trained)).code == 0
    assert head_of(run_dir) == before["head.safetensors"]
    first, again = json.loads(before["result.json"]), json.loads(files_of(run_dir)["result.json"])
    assert again["metrics"] == pytest.approx(first["metrics"])
    assert again["per_class"] == pytest.approx(first["per_class"])


def test_a_head_is_not_resumed_on_other_weights(command: Command, trained: Path, tmp_path: Path) -> None:
    """The backbone's folder is the same, what lies in it is not."""
    backbone, run_dir = tmp_path / "backbone", tmp_path / "run"
    shutil.copytree(trained, backbone)
    assert command(*segment(run_dir, "--backbone", backbone)).code == 0
    changed = {key: value + 0.01 for key, value in load_file(backbone / "model.safetensors").items()}
    torch.save({"state_dict": changed}, backbone / "w.pth")
    model = locatvit.create_model(
        "locatvit_tiny", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=10
    )
    locatvit.save_checkpoint(locatvit.load_checkpoint(model, backbone / "w.pth"), backbone / "model.safetensors")
    message = command.refused(*segment(run_dir, "--backbone", backbone))
    assert "the configuration differs in model.weights (checkpoint '" in message
    # a folder that was moved holds the same weights still
    (tmp_path / "moved").mkdir()
    for name in ("config.yaml", "result.json", "model.safetensors"):
        shutil.copy(trained / name, tmp_path / "moved" / name)
    assert command(*segment(run_dir, "--backbone", tmp_path / "moved")).code == 0


def test_camvid_with_the_trained_backbone(command: Command, trained: Path, tmp_path: Path) -> None:
    """Images of another size than the backbone's, in their own aspect."""
    root = mask_folder(tmp_path / "camvid", CLASSES, size=(36, 52))
    data = ("--data.name", "camvid", "--data.root", str(root))
    answer = command(*segment(tmp_path / "run", "--backbone", trained, data=data))
    assert answer.code == 0
    result = read_result(tmp_path / "run")
    assert result.data == {"name": "camvid", "split": "val", "images": 2, "classes": 11}
    assert list(result.per_class) == list(CLASSES)


def test_random_backbone_is_said_to_be_one(command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kwargs = ("--model.kwargs", "{img_size: 32, patch_size: 8, depth: 1, embed_dim: 24, num_heads: 2}")
    assert command(*segment(tmp_path / "a", *kwargs)).code == 0
    assert "the backbone locatvit_tiny has random weights; give trained ones by --backbone" in caplog.text
    assert command(*segment(tmp_path / "b", *kwargs)).code == 0
    assert read_result(tmp_path / "a").model["weights"] == read_result(tmp_path / "b").model["weights"]


def test_label_of_the_data_goes_to_the_result(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command(*segment(tmp_path / "s", "--backbone", trained, "--data.label", "shapes")).code == 0
    assert read_result(tmp_path / "s").data["name"] == "shapes"


def test_report_of_twins(command: Command, trained: Path, segmented: Path, tmp_path: Path) -> None:
    vit, head = tmp_path / "vit", tmp_path / "vit_scenes"
    assert command(*train(vit, *PLAIN)).code == 0
    assert read_result(vit).model["locat"] is None
    assert command(*segment(head, "--backbone", vit)).code == 0
    runs = (vit, trained, head, segmented)
    answer = command("report", *runs, "--output", tmp_path / "report.md")
    assert answer.code == 0
    text = (tmp_path / "report.md").read_text()
    assert "What LocAt adds" in text
    for run_dir in (trained, segmented):
        for name in {"top1", "miou"} & read_result(run_dir).metrics.keys():
            assert f"{100 * read_result(run_dir).metrics[name]:.2f}" in text
            assert f"{100 * read_result(run_dir).metrics[name]:.2f}" in answer.out
    assert command("report", *runs, "--output", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "<img" in page
    assert 'src="http' not in page  # nothing is fetched


def test_no_path_of_this_machine_is_written_where_none_was_given(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*train(Path("runs/a"))).code == 0
    assert command(*segment(Path("runs/b"), "--backbone", "runs/a")).code == 0
    for name in ("runs/a/config.yaml", "runs/a/result.json", "runs/b/config.yaml", "runs/b/result.json"):
        assert str(tmp_path) not in Path(name).read_text()
        assert str(Path.home()) not in Path(name).read_text()


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``python -m locatvit ...`` in a process group of its own, on one thread; it ends with the block."""
    started = subprocess.Popen(
        [sys.executable, "-m", "locatvit", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts what it puts in the background deaf to Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def signal_in_the_middle(
    number: signal.Signals, folder: Path, *arguments: object, written: Callable[[Path], object] = list_checkpoints
) -> tuple[int, str]:
    """Start a run, send a signal to all of it as soon as it has a checkpoint; its exit code and errors."""
    with process(*arguments) as running:
        deadline = time.monotonic() + 120
        while not written(folder):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline, "nothing was written in two minutes"
            time.sleep(0.005)
        os.killpg(running.pid, number)
        _, errors = running.communicate(timeout=60)
        return running.returncode, errors


LONG = ("--training.epochs", "8", "--training.checkpoint_every_updates", "2")
LONG_HEAD = ("--protocol.num_updates", "40", "--protocol.evaluate_every", "10")


@on_a_cpu
@pytest.mark.slow
def test_a_training_that_was_killed_ends_with_the_same_weights(command: Command, tmp_path: Path) -> None:
    assert command(*train(tmp_path / "whole", *LONG)).code == 0
    killed = tmp_path / "killed"
    code, _ = signal_in_the_middle(signal.SIGKILL, killed, *train(killed, *LONG))
    assert code == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    assert command(*train(killed, *LONG)).code == 0
    assert weights_of(killed) == weights_of(tmp_path / "whole")
    whole, again = read_result(tmp_path / "whole"), read_result(killed)
    assert again.metrics == whole.metrics
    assert [row["train_loss"] for row in read_metrics(killed)] == [
        row["train_loss"] for row in read_metrics(tmp_path / "whole")
    ]
    assert not list(killed.rglob("*.tmp"))


@on_a_cpu
@pytest.mark.slow
def test_a_segmentation_that_was_killed_ends_with_the_same_head(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    options = ("--backbone", trained, *LONG_HEAD)
    assert command(*segment(tmp_path / "whole", *options)).code == 0
    killed = tmp_path / "killed"
    code, _ = signal_in_the_middle(signal.SIGKILL, killed, *segment(killed, *options))
    assert code == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    assert command(*segment(killed, *options)).code == 0
    assert head_of(killed) == head_of(tmp_path / "whole")
    assert read_result(killed).metrics == read_result(tmp_path / "whole").metrics
    assert read_result(killed).per_class == read_result(tmp_path / "whole").per_class


@on_a_cpu
@pytest.mark.slow
def test_two_processes_share_the_batch(trained: Path, tmp_path: Path) -> None:
    """``batch_size`` is that of an update, whoever computes it: as many updates, and one prints."""
    run_dir = tmp_path / "run"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [*launcher, "-m", "locatvit", *map(str, train(run_dir))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: locatvit segment") == 1
    assert [row["update"] for row in read_metrics(run_dir)] == [3, 6]
    assert read_result(run_dir).data == read_result(trained).data


@pytest.mark.slow
def test_an_interrupted_run_says_how_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C reaches the loading processes, too."""
    run_dir = tmp_path / "run"
    code, errors = signal_in_the_middle(
        signal.SIGINT,
        run_dir,
        *train(run_dir, *LONG, "--training.num_workers", "1", "--training.epochs", "500"),
    )
    assert code == 130
    assert errors.splitlines()[-1] == (
        "locatvit: stopped; the same command goes on from the last checkpoint, if one was written"
    )
    assert "Traceback" not in errors
