"""``locatvit train`` with a teacher: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_cli import MODEL, Command, files_of, train

import locatvit
from locatvit.results import read_result
from locatvit.training.checkpoint import list_checkpoints

KWARGS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}


def taught(run_dir: Path, checkpoint: Path, *more: object) -> tuple:
    """A tiny plain ViT with a LocAtViT as its teacher."""
    teacher = ("--distillation.teacher", "locatvit_tiny", "--distillation.kwargs", MODEL[1])
    student = ("--model.name", "vit_tiny_patch16_224")
    return train(run_dir, *student, *teacher, "--distillation.checkpoint", checkpoint, *more)


def test_what_a_taught_run_leaves(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command(*taught(tmp_path / "taught", trained)).code == 0
    assert command(*train(tmp_path / "alone", "--model.name", "vit_tiny_patch16_224")).code == 0
    weights, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("taught", "alone"))
    assert list(weights) == list(alone)
    assert any(not weights[name].equal(alone[name]) for name in weights)
    result = read_result(tmp_path / "taught")
    assert result.config["distillation"]["teacher"] == "locatvit_tiny"
    assert re.fullmatch("[0-9a-f]{16}", result.model["distillation"]["weights"])
    assert "distillation" not in read_result(tmp_path / "alone").model
    before = files_of(tmp_path / "taught")
    assert command(*taught(tmp_path / "taught", trained)).code == 0
    assert files_of(tmp_path / "taught") == before
    # the configuration that it left makes the same run again, and is one that validate reads
    again = command("train", "--config", tmp_path / "taught/config.yaml", "--run_dir", tmp_path / "again")
    assert again.code == 0
    assert files_of(tmp_path / "again")["model.safetensors"] == before["model.safetensors"]
    assert command("validate", "--run", tmp_path / "taught").code == 0


def test_another_teacher_does_not_go_on(command: Command, trained: Path, tmp_path: Path) -> None:
    run_dir, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other.pth"
    assert command(*taught(run_dir, trained)).code == 0
    (run_dir / "result.json").unlink()  # as if it had been stopped
    changed = {name: value + 0.01 for name, value in load_file(trained / "model.safetensors").items()}
    torch.save(changed, other)
    message = command.refused(*taught(run_dir, other))
    assert "cannot resume from" in message
    assert "the configuration differs in distillation.weights (checkpoint '" in message
    message = command.refused(*taught(run_dir, trained, "--distillation.temperature", 2))
    assert "differs in distillation.temperature (checkpoint 1.0, now 2.0)" in message
    message = command.refused(*train(run_dir, "--model.name", "vit_tiny_patch16_224"))
    assert "differs in distillation.kwargs" in message
    shutil.copytree(trained, moved)
    assert command(*taught(run_dir, moved)).code == 0
    assert json.loads((run_dir / "result.json").read_text())["config"]["distillation"]["checkpoint"] == str(moved)


def test_a_stopped_run_goes_on_with_its_teacher(command: Command, trained: Path, tmp_path: Path) -> None:
    every = ("--training.checkpoint_every_updates", "1")
    assert command(*taught(tmp_path / "whole", trained, *every)).code == 0
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    for name in ("result.json", "model.safetensors"):
        (broken / name).unlink()
    list_checkpoints(broken)[-1].unlink()  # stopped one update before the end
    answer = command(*taught(broken, trained, *every))
    assert answer.code == 0
    assert "update 6/6" in answer.err
    if not torch.accelerator.is_available():
        assert files_of(broken)["model.safetensors"] == files_of(tmp_path / "whole")["model.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--distillation.teacher", "locatvit_tinny"), r"the teacher of the distillation: model 'locatvit_tinny' is "),
        (("--distillation.pretrained", "false", "--distillation.checkpoint", "null"),
         r"--distillation.teacher is 'locatvit_tiny' with random weights, which teach nothing; give its checkpoint"),
        (("--distillation.temperature", "-1"), r"--distillation.temperature is -1.0; it must be a number > 0"),
        (("--distillation.label_weight", "1"), r"--distillation.label_weight is 1.0; it must be a share in \[0, 1\)"),
        (("--distillation.normalisation", "none"), r"--distillation.normalisation is 'none'; it must be one of teac"),
        (("--distillation.teacher", "null"), r"--distillation.teacher is null, but its checkpoint or kwargs are given"),
        (("--distillation.kwargs.img_size", "48"),
         r"the teacher of the distillation: .* was trained on grid \[4, 4\] and the model is built for \[6, 6\]"),
        (("--distillation.teach", "x"), r"--distillation.teach is no option; did you mean --distillation.teacher"),
    ],
)  # fmt: skip
def test_what_is_refused(
    options: tuple[str, ...], message: str, command: Command, trained: Path, tmp_path: Path
) -> None:
    assert re.match(message, command.refused(*taught(tmp_path / "run", trained, *options)))
    assert not (tmp_path / "run").exists()


def test_teacher_of_other_classes(command: Command, tmp_path: Path) -> None:
    path = locatvit.save_checkpoint(
        locatvit.create_model("locatvit_tiny", **KWARGS, num_classes=7), tmp_path / "seven.safetensors"
    )
    message = command.refused(*taught(tmp_path / "run", path))
    assert re.match(r"the teacher of the distillation: .* its classes are 7 and the model's 10: create", message)
    assert not (tmp_path / "run").exists()


def published(cache: Path) -> None:
    """Random weights in the place where the hub client keeps what it fetched."""
    folder = cache / "models--sinahmr--locatvit_tiny"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(locatvit.create_model("locatvit_tiny").state_dict(), snapshot / "model.safetensors")


def test_published_teacher(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ImageNet's classes; without a network and without a copy it cannot be had."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = ("--distillation.kwargs", f"{{cache_dir: {tmp_path}/cache, dynamic_img_size: true}}")
    arguments = train(tmp_path / "run", "--distillation.teacher", "locatvit_tiny", *cache)
    message = command.refused(*arguments)
    assert re.match(
        r"the teacher of the distillation: cannot fetch model.safetensors of 'sinahmr/locatvit_tiny'", message
    )
    published(tmp_path / "cache")
    message = command.refused(*arguments)
    assert re.match(r"the teacher 'locatvit_tiny' gives 1000 outputs but the data has 10 classes; give a t", message)
    timms = train(tmp_path / "run", "--distillation.teacher", "vit_tiny_patch16_224", *cache)
    assert re.match(
        r"the teacher of the distillation: model 'vit_tiny_patch16_224' cannot be cr", command.refused(*timms)
    )
    assert not (tmp_path / "run").exists()
