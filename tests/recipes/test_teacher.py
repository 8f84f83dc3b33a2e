"""The teacher of a distillation: from its configuration to what it says to the student's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import locatvit
from locatvit.backbones.checkpoint import weights_digest
from locatvit.data.config import IMAGENET_MEAN, IMAGENET_STD, ClassificationAugment
from locatvit.errors import LocAtError
from locatvit.recipes.teacher import TeacherPlan
from locatvit.training.config import DistillationConfig

# DeiT-III wants ImageNet's mean and std, and our models 0.5: as in the paper's distillation of Jumbo
NAME = "deit3_small_patch16_224"
SMALL: dict[str, Any] = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
AUGMENT = ClassificationAugment(image_size=24)


def trained(num_classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = locatvit.create_model(NAME, **SMALL, num_classes=num_classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def config(tmp_path: Path) -> DistillationConfig:
    path = locatvit.save_checkpoint(trained(), tmp_path / "teacher.safetensors")
    return DistillationConfig(NAME, kwargs=SMALL, checkpoint=str(path))


@pytest.mark.parametrize("normalisation", ["teacher", "student"])
def test_what_the_teacher_says_by_hand(normalisation: str, config: DistillationConfig) -> None:
    """The student's images are (x - 0.5) / 0.5; by default the teacher gets (x - mean) / std of ImageNet."""
    taught, _ = TeacherPlan(replace(config, normalisation=normalisation)).build(AUGMENT, 5)
    raw = torch.rand(4, 3, 24, 24, dtype=torch.float64)
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in ((IMAGENET_MEAN, IMAGENET_STD) if normalisation == "teacher" else (AUGMENT.mean, AUGMENT.std))
    )
    with torch.no_grad():
        want = trained().double().eval()((raw - mean) / std)
    got = taught.teacher_logits(((raw - 0.5) / 0.5).float())
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    student = torch.randn(4, 5, dtype=torch.float64)
    p, q = want.softmax(1), student.softmax(1)
    by_hand = (p * (p.log() - q.log())).sum() / 4
    assert taught(student, ((raw - 0.5) / 0.5).float()).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_the_two_normalisations_differ(config: DistillationConfig) -> None:
    images = torch.randn(2, 3, 24, 24)
    one, other = (
        TeacherPlan(replace(config, normalisation=choice)).build(AUGMENT, 5)[0].teacher_logits(images)
        for choice in ("teacher", "student")
    )
    assert (one - other).abs().max() > 0.01 * one.abs().max()


def test_normalisation_can_be_told(config: DistillationConfig) -> None:
    overlay = {"pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}}
    told, as_students = replace(config, kwargs={**SMALL, **overlay}), replace(config, normalisation="student")
    images = torch.randn(2, 3, 24, 24)
    one, other = (TeacherPlan(c).build(AUGMENT, 5)[0].teacher_logits(images) for c in (told, as_students))
    assert one.equal(other)
    unknown = replace(config, kwargs={**SMALL, "pretrained_cfg_overlay": {"mean": ()}})
    with pytest.raises(LocAtError, match=r"the teacher 'deit3_small_patch16_224' does not tell mean and std of its im"):
        TeacherPlan(unknown).build(AUGMENT, 5)


def test_what_a_fingerprint_holds(config: DistillationConfig, tmp_path: Path) -> None:
    """The weights and all that touches the loss, and not where the file lies."""
    parts = TeacherPlan(config).build(AUGMENT, 5)[1]
    assert parts["distillation"]["weights"] == weights_digest(trained())
    assert parts["distillation"]["teacher"] == NAME
    assert str(tmp_path) not in str(parts)
    moved = locatvit.save_checkpoint(trained(), tmp_path / "moved.pth")
    assert TeacherPlan(replace(config, checkpoint=str(moved))).build(AUGMENT, 5)[1] == parts
    other = locatvit.save_checkpoint(trained(seed=1), tmp_path / "other.pth")
    assert TeacherPlan(replace(config, checkpoint=str(other))).build(AUGMENT, 5)[1] != parts
    assert TeacherPlan(replace(config, temperature=2.0)).build(AUGMENT, 5)[1] != parts


def test_teacher_with_locat(tmp_path: Path) -> None:
    model = locatvit.create_model("locatvit_tiny", **SMALL, num_classes=5)
    path = locatvit.save_checkpoint(model, tmp_path / "locat.safetensors")
    config = DistillationConfig("locatvit_tiny", kwargs=SMALL, checkpoint=str(path))
    images = torch.randn(2, 3, 24, 24)
    assert TeacherPlan(config).build(AUGMENT, 5)[0].teacher_logits(images).equal(model.eval()(images))


def test_teacher_of_other_classes(config: DistillationConfig) -> None:
    with pytest.raises(LocAtError, match=r"the teacher of the distillation: .* its classes are 5 and the model's 9"):
        TeacherPlan(config).build(AUGMENT, 9)


def test_teacher_of_another_size(config: DistillationConfig) -> None:
    with pytest.raises(LocAtError, match=r"the teacher '\w+' refuses images of 32 x 32 pixels \(.*\); create it for"):
        TeacherPlan(config).build(replace(AUGMENT, image_size=32), 5)


def test_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        LocAtError, match=r"the teacher of the distillation: model 'deit3_smal_patch16_224' is unknown; "
    ):
        TeacherPlan(DistillationConfig("deit3_smal_patch16_224"))
    with pytest.raises(LocAtError, match=r"the teacher of the distillation: no checkpoint at \S+no.pth"):
        TeacherPlan(DistillationConfig(NAME, checkpoint=str(tmp_path / "no.pth")))
