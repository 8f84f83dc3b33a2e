from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import CONFIG, NUM_CLASSES, ColourImages, EpochDataLoader, tiny_model, train_loader, val_loader
from torch import nn

from locatvit.errors import LocAtError
from locatvit.training.checkpoint import checkpoint_path, read_checkpoint
from locatvit.training.classification import ClassificationLoss, evaluate_classifier, train_classifier
from locatvit.training.config import ClassificationConfig
from locatvit.training.loop import FitReport
from locatvit.training.runtime import make_accelerator

PLAIN = ClassificationConfig(epochs=1, warmup_epochs=0, batch_size=6, mixup=0, cutmix=0, label_smoothing=0.0)


class Fixed(nn.Module):
    """Gives the logits it was made with, row by row of the image's first pixel."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def images_of(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2).clone()


def test_a_mixed_run_learns_a_separable_problem(tmp_path: Path) -> None:
    config = ClassificationConfig(epochs=6, warmup_epochs=2, batch_size=16, lr=1e-2)
    assert config.mixes
    metrics = train_classifier(
        tiny_model(), EpochDataLoader(ColourImages(200), 16), val_loader(), config, tmp_path,
        num_classes=NUM_CLASSES, accelerator=make_accelerator(),
    ).metrics  # fmt: skip
    assert metrics["top1"] > 0.9  # chance is 0.14
    assert metrics["top5"] >= metrics["top1"]


def test_measures_by_hand() -> None:
    logits = torch.zeros(3, 7)
    logits[0, 2] = math.log(4)  # class 2 has 4/10, the others 1/10
    logits[1, :6] = torch.arange(6.0, 0.0, -1.0) * 10
    logits[2, :6] = torch.arange(6.0, 0.0, -1.0) * 10
    model = Fixed(logits).train()
    # rows: right; right among five; class 5 is sixth
    batches = [(images_of([0, 1]), torch.tensor([2, 4])), (images_of([2]), torch.tensor([5]))]
    metrics = evaluate_classifier(model, batches, make_accelerator())
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx((math.log(10 / 4) + 40 + 50) / 3, rel=1e-4)
    assert model.training


def test_no_top5_for_five_classes() -> None:
    metrics = evaluate_classifier(Fixed(torch.eye(5)), [(images_of([3]), torch.tensor([3]))], make_accelerator())
    assert sorted(metrics) == ["loss", "top1"]


def test_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[math.log(4), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    batch = images_of([0]), torch.tensor([0])
    smoothed = ClassificationLoss(dataclasses.replace(PLAIN, label_smoothing=0.1), 7)
    loss = smoothed(Fixed(logits), batch).item()
    assert loss == pytest.approx((0.9 + 0.1 / 7) * math.log(10 / 4) + 0.6 / 7 * math.log(10))


class Brightness(nn.Module):
    """The logit of class 0 is the image's first pixel, the six others are 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(images[:, 0, 0, :1], (0, 6))


def test_mixup_by_hand_and_without_touching_the_loaders_images() -> None:
    images, labels = images_of([0, 1]), torch.tensor([0, 1])
    np.random.seed(6)
    np.random.rand()  # whether the batch is mixed at all
    share = np.random.beta(0.8, 0.8)
    assert 0.1 < share < 0.4
    np.random.seed(6)
    loss = ClassificationLoss(dataclasses.replace(PLAIN, mixup=0.8), 7)(Brightness(), (images, labels)).item()
    # the images become 1 - share and share; class 0 has the weights share and 1 - share in their targets
    first = math.log(math.exp(1 - share) + 6) - share * (1 - share)
    second = math.log(math.exp(share) + 6) - (1 - share) * share
    assert loss == pytest.approx((first + second) / 2, rel=1e-6)
    assert images.equal(images_of([0, 1]))


def test_wrong_number_of_classes(tmp_path: Path) -> None:
    accelerator = make_accelerator()
    for outputs in (NUM_CLASSES - 1, NUM_CLASSES + 1):
        with pytest.raises(
            LocAtError,
            match=f"the model has {outputs} outputs but the data has 7 classes; .* num_classes=7",
        ):
            train_classifier(
                tiny_model(outputs), train_loader(), val_loader(), CONFIG, tmp_path,
                num_classes=NUM_CLASSES, accelerator=accelerator,
            )  # fmt: skip
    with pytest.raises(LocAtError, match=r"a batch has label 6, but there are 5 classes, 0 to 4"):
        train_classifier(
            tiny_model(5), EpochDataLoader(ColourImages(42), 42), val_loader(), CONFIG, tmp_path,
            num_classes=5, accelerator=accelerator,
        )  # fmt: skip
    with pytest.raises(LocAtError, match=r"a batch has label -1, but there are 7 classes"):
        evaluate_classifier(Fixed(torch.eye(7)), [(images_of([0]), torch.tensor([-1]))], accelerator)


def test_odd_and_empty_batches(tmp_path: Path) -> None:
    accelerator = make_accelerator()
    with pytest.raises(LocAtError, match=r"a batch has 5 images; Mixup and CutMix pair them"):
        train_classifier(
            tiny_model(), EpochDataLoader(ColourImages(20), 5), val_loader(), CONFIG, tmp_path,
            num_classes=NUM_CLASSES, accelerator=accelerator,
        )  # fmt: skip
    with pytest.raises(LocAtError, match=r"the training loader has no batches"):
        train_classifier(
            tiny_model(), EpochDataLoader(ColourImages(5), 6), val_loader(), CONFIG, tmp_path,
            num_classes=NUM_CLASSES, accelerator=accelerator,
        )  # fmt: skip
    with pytest.raises(LocAtError, match=r"the evaluation loader has no images"):
        evaluate_classifier(tiny_model(), [], accelerator)


def test_the_model_ends_with_the_averaged_weights_that_were_measured(tmp_path: Path) -> None:
    accelerator = make_accelerator()
    config = dataclasses.replace(CONFIG, ema_decay=0.5)
    starts: list[int] = []

    def train(model: nn.Module) -> FitReport:
        return train_classifier(
            model, train_loader(), val_loader(), config, tmp_path,
            num_classes=NUM_CLASSES, accelerator=accelerator, on_start=starts.append,
        )  # fmt: skip

    model = tiny_model()
    report = train(model)
    assert evaluate_classifier(model, val_loader(), accelerator) == report.metrics
    # a second call finds the run complete and gives the same
    again = tiny_model()
    assert train(again).metrics == report.metrics
    assert starts == [0, report.updates]
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


class TwiceTheSame(nn.Module):
    """One layer under two names, as Jumbo has its MLP under thirteen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(3, 3)
        self.head = nn.Linear(3, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images.mean(dim=(2, 3))).relu()))


def test_a_shared_tensor_is_averaged_once(tmp_path: Path) -> None:
    config = dataclasses.replace(
        PLAIN, ema_decay=0.75, lr=0.1, weight_decay=0.0, checkpoint_every_updates=1, warmup_epochs=0.5
    )
    train_classifier(
        TwiceTheSame(), EpochDataLoader(ColourImages(12), 6), val_loader(), config, tmp_path,
        num_classes=NUM_CLASSES, accelerator=make_accelerator(),
    )  # fmt: skip
    first, second = (read_checkpoint(checkpoint_path(tmp_path, update)) for update in (1, 2))
    for name, before in first["ema"].items():
        assert before.equal(first["model"][name])
        now = second["model"][name]
        assert not now.equal(before), name
        assert torch.allclose(second["ema"][name], 0.75 * before + 0.25 * now, atol=1e-6), name
