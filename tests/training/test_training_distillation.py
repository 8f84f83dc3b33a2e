from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CONFIG, NUM_CLASSES, ColourImages, EpochDataLoader, tiny_model, train_loader, val_loader
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.training.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from locatvit.training.classification import ClassificationLoss, train_classifier
from locatvit.training.config import ClassificationConfig, DistillationConfig
from locatvit.training.distillation import Distillation, MeanStd
from locatvit.training.loop import FitReport
from locatvit.training.runtime import make_accelerator, seed_everything

PLAIN = ClassificationConfig(epochs=1, warmup_epochs=0, batch_size=6, mixup=0, cutmix=0, label_smoothing=0.0)
HALF = MeanStd((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STUDENT = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.25, -3.0]])
TEACHER = torch.tensor([[1.0, 0.0, -2.0], [-1.0, 4.0, 0.5]])


class Fixed(nn.Module):
    """Gives the logits it was made with, and keeps the images it was shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits.clone()), torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.logits[: len(images)]


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4)


def distillation(
    teacher: nn.Module, images: MeanStd = HALF, teacher_images: MeanStd = HALF, **settings: Any
) -> Distillation:
    config = DistillationConfig(teacher="some_teacher", **settings)
    return Distillation(teacher, config, images=images, teacher_images=teacher_images)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """T² KL(teacher || student), the batch's mean, written out in float64."""
    p, q = ((logits.double() / temperature).exp() for logits in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(1).mean().item()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_by_hand(temperature: float) -> None:
    loss = ClassificationLoss(PLAIN, 3, distillation(Fixed(TEACHER), temperature=temperature))
    got = loss(Fixed(STUDENT), (images(), torch.tensor([0, 1]))).item()
    assert got == pytest.approx(divergence(STUDENT, TEACHER, temperature), rel=1e-6)
    assert got != pytest.approx(divergence(TEACHER, STUDENT, temperature), rel=1e-2), "the other direction"


def test_labels_have_no_say_unless_they_are_given_a_share() -> None:
    def loss(labels: list[int], **settings: float) -> float:
        objective = ClassificationLoss(PLAIN, 3, distillation(Fixed(TEACHER), **settings))
        return objective(Fixed(STUDENT), (images(), torch.tensor(labels))).item()

    assert loss([0, 1]) == loss([2, 2])
    entropy = torch.nn.functional.cross_entropy(STUDENT.double(), torch.tensor([0, 1])).item()
    want = 0.75 * divergence(STUDENT, TEACHER) + 0.25 * entropy
    assert loss([0, 1], label_weight=0.25) == pytest.approx(want, rel=1e-6)


def test_smoothing_and_mixing_of_the_labels_share() -> None:
    smooth = dataclasses.replace(PLAIN, label_smoothing=0.2)
    batch = images(), torch.tensor([0, 1])
    labels_alone = ClassificationLoss(smooth, 3)(Fixed(STUDENT), batch).item()
    both = ClassificationLoss(smooth, 3, distillation(Fixed(TEACHER), label_weight=0.5))(Fixed(STUDENT), batch).item()
    assert both == pytest.approx(0.5 * divergence(STUDENT, TEACHER) + 0.5 * labels_alone, rel=1e-6)


def test_an_agreeing_student_has_no_loss_and_no_gradient() -> None:
    student = Fixed(TEACHER)
    loss = ClassificationLoss(PLAIN, 3, distillation(Fixed(TEACHER)))(student, (images(), torch.tensor([0, 1])))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.logits.grad.abs().max() < 1e-6


def test_teacher_sees_the_mixed_images_normalised_as_it_wants() -> None:
    student, teacher = Fixed(STUDENT), Fixed(TEACHER)
    config = dataclasses.replace(PLAIN, mixup=0.8)
    loss = ClassificationLoss(config, 3, distillation(teacher, teacher_images=IMAGENET))
    raw = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    batch = ((raw - 0.5) / 0.5).float()
    loss(student, (batch, torch.tensor([0, 1])))
    assert not student.seen.equal(batch), "they were not mixed"
    mixed = student.seen.double() * 0.5 + 0.5
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    assert torch.allclose(teacher.seen.double(), (mixed - mean) / std, atol=1e-6)


def test_teacher_with_the_students_normalisation_sees_the_same_numbers() -> None:
    student, teacher = Fixed(STUDENT), Fixed(TEACHER)
    ClassificationLoss(PLAIN, 3, distillation(teacher))(student, (images(), torch.tensor([0, 1])))
    assert teacher.seen.equal(student.seen)


def test_teacher_is_frozen_and_evaluates() -> None:
    teacher, student = tiny_model().train(), tiny_model().train()  # both with dropout and stochastic depth
    weights = [parameter.clone() for parameter in teacher.parameters()]
    taught = distillation(teacher)
    batch = torch.randn(4, 3, 8, 8)
    assert taught.teacher_logits(batch).equal(taught.teacher_logits(batch))
    ClassificationLoss(PLAIN, NUM_CLASSES, taught)(student, (batch, torch.zeros(4).long())).backward()
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(a.equal(b) for a, b in zip(weights, teacher.parameters(), strict=True))
    assert any(parameter.grad.abs().max() > 0 for parameter in student.parameters())


def test_teacher_computes_under_the_students_autocast() -> None:
    teacher, kinds = tiny_model(), []
    teacher.head.register_forward_hook(lambda _module, _inputs, output: kinds.append(output.dtype))
    loss = ClassificationLoss(PLAIN, NUM_CLASSES, distillation(teacher))
    with make_accelerator("bf16").autocast():
        value = loss(tiny_model(), (torch.randn(4, 3, 8, 8), torch.zeros(4).long()))
    assert kinds == [torch.bfloat16]
    assert value.dtype == torch.float32


def test_teacher_of_other_classes_or_another_size() -> None:
    taught = distillation(tiny_model(5))
    with pytest.raises(
        LocAtError, match=r"the teacher 'some_teacher' gives 5 outputs but the data has 7 classes; give a teacher"
    ):
        taught.check(8, NUM_CLASSES)
    with pytest.raises(LocAtError, match=r"gives 5 outputs but the data has 7 classes"):
        ClassificationLoss(PLAIN, 7, taught)(tiny_model(), (torch.randn(2, 3, 8, 8), torch.zeros(2).long()))
    with pytest.raises(LocAtError, match=r"refuses images of 12 x 12 pixels \(Input height .*\); create it for"):
        taught.check(12, 5)
    taught.check(8, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be a number > 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"label_weight": 1.0}, r"label_weight is 1.0; it must be a share in \[0, 1\)"),
        ({"label_weight": -0.1}, "label_weight is -0.1"),
        ({"normalisation": "imagenet"}, "normalisation is 'imagenet'; it must be one of teacher, student"),
        ({"pretrained": False}, "teacher is 'x' with random weights, which teach nothing; give its checkpoint"),
        ({"kwargs": {"num_classes": 3}}, "kwargs of the teacher has num_classes=3; its classes must be the data's"),
        ({"teacher": None, "checkpoint": "x.pth"}, "teacher is null, but its checkpoint or kwargs are given; name"),
        ({"teacher": None, "kwargs": {"a": 1}}, "teacher is null"),
    ],
)
def test_each_field_says_its_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        DistillationConfig(**{"teacher": "x", **fields})


def test_off_by_default_and_then_the_authors_but_for_their_normalisation() -> None:
    config = DistillationConfig()
    assert config.teacher is None
    assert (config.temperature, config.label_weight, config.normalisation) == (1.0, 0.0, "teacher")


def teacher() -> nn.Module:
    model = tiny_model()
    seed_everything(17)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def train(folder: Path, *, stop_at: int | None = None, **options: Any) -> tuple[nn.Module, FitReport]:
    """A run of 20 updates with a teacher, interrupted in update ``stop_at``."""
    student, forwards = tiny_model(), 0

    def count(module: nn.Module, _arguments: object) -> None:
        nonlocal forwards
        forwards += module.training
        if forwards == stop_at:
            raise KeyboardInterrupt

    student.register_forward_pre_hook(count)
    report = train_classifier(
        student, train_loader(), val_loader(), CONFIG, folder, num_classes=NUM_CLASSES,
        accelerator=make_accelerator(), distillation=distillation(teacher(), teacher_images=IMAGENET), **options,
    )  # fmt: skip
    return student, report


def test_a_run_with_a_teacher_resumes_exactly_and_its_checkpoints_hold_the_student_alone(tmp_path: Path) -> None:
    whole, report = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=9)
    assert list_checkpoints(tmp_path / "broken")[-1] == checkpoint_path(tmp_path / "broken", 6)
    resumed, again = train(tmp_path / "broken")
    assert again.resumed_from == 6
    assert again.metrics == report.metrics
    assert all(a.equal(b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    state = read_checkpoint(report.checkpoint)
    assert list(state["model"]) == list(state["ema"]) == list(whole.state_dict())
    assert not any("teacher" in name for name in state["model"])


def test_a_student_learns_from_its_teacher_alone(tmp_path: Path) -> None:
    """The teacher learned the colours from labels; the student sees none of them."""
    config = ClassificationConfig(epochs=6, warmup_epochs=2, batch_size=16, lr=1e-2, mixup=0, cutmix=0)
    options: dict[str, Any] = {"num_classes": NUM_CLASSES, "accelerator": make_accelerator()}
    loader = EpochDataLoader(ColourImages(200), 16)
    taught = tiny_model()
    best = train_classifier(taught, loader, val_loader(), config, tmp_path / "teacher", **options).metrics["top1"]
    assert best > 0.9  # chance is 0.14
    without_labels = EpochDataLoader(Unlabelled(200), 16)
    metrics = train_classifier(
        tiny_model(), without_labels, val_loader(), config, tmp_path / "student",
        distillation=distillation(taught), **options,
    ).metrics  # fmt: skip
    assert metrics["top1"] > 0.9


class Unlabelled(ColourImages):
    """Every image says class 0."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return super().__getitem__(index)[0], 0
