"""Training and evaluation of a classifier, the authors' way (details, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.training.batches import EpochBatches, EpochLoader
from locatvit.training.checkpoint import Resume
from locatvit.training.config import ClassificationConfig
from locatvit.training.distillation import Distillation
from locatvit.training.loop import FitReport, fit
from locatvit.training.optim import adamw, triangular_schedule
from locatvit.training.runtime import seed_everything

_NO_EFFECT_ON_WEIGHTS = ("num_workers", "evaluate_every_epochs", "checkpoint_every_updates")


def train_classifier(
    model: nn.Module,
    train_loader: EpochLoader,
    val_loader: Iterable[Any],
    config: ClassificationConfig,
    run_dir: Path,
    *,
    num_classes: int,
    accelerator: Accelerator,
    distillation: Distillation | None = None,
    resume: Resume = "auto",
    fingerprint: dict[str, Any] | None = None,
    on_start: Callable[[int], None] | None = None,
    description: str = "training",
) -> FitReport:
    """Train ``model`` in place; the report's metrics are those after the last update.

    The weights with the best top-1 so far are kept in ``checkpoints/best.pt``. With ``config.ema_decay`` all
    measures are of the averaged weights, and the model holds these in the end.

    Args:
        model: gives logits ``[B, C]``; stochastic depth is its own.
        train_loader: batches ``(images [B, 3, height, width], labels [B])``; see ``EpochLoader``.
        val_loader: the same without augmentation, in any order, each image once.
        config: see there; ``batch_size`` and ``num_workers`` are the loader's matter.
        run_dir: the run's folder.
        num_classes: C of the data.
        accelerator: from ``runtime.make_accelerator(config.precision)``.
        distillation: a teacher to learn from, None to learn from the labels.
        resume: see ``checkpoint.Resume``.
        fingerprint: what else a checkpoint must agree in (model, data, teacher); ``config`` is added here.
        on_start: see ``fit``.
        description: for the progress bar.

    Returns:
        see ``FitReport``; for its metrics ``evaluate_classifier``.

    Raises:
        LocAtError: labels, classes or batches that do not fit; and what ``fit`` raises.
    """
    seed_everything(config.seed, accelerator.process_index)
    model.to(accelerator.device)
    if distillation is not None:
        distillation.to(accelerator.device)
    objective = ClassificationLoss(config, num_classes, distillation)
    updates_per_epoch = len(EpochBatches(train_loader, accelerator))
    num_updates = config.epochs * updates_per_epoch
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
    scheduler = triangular_schedule(
        optimizer, num_updates=num_updates, warmup_updates=round(config.warmup_epochs * updates_per_epoch)
    )
    ema = _moving_average(model, config)
    measured = model if ema is None else ema.module
    report = fit(
        model=model,
        loss_fn=objective,
        loader=train_loader,
        optimizer=optimizer,
        scheduler=scheduler,
        num_updates=num_updates,
        run_dir=run_dir,
        accelerator=accelerator,
        evaluate=lambda: evaluate_classifier(measured, val_loader, accelerator),
        evaluate_every=config.evaluate_every_epochs * updates_per_epoch,
        best_metric="top1",
        checkpoint_every=config.checkpoint_every_updates,
        resume=resume,
        fingerprint={**(fingerprint or {}), **_fingerprint(config), "num_classes": num_classes},
        ema=ema,
        clip_grad=config.clip_grad,
        check_batch=objective.check_batch,
        on_start=on_start,
        description=description,
    )
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    return report


class ClassificationLoss:
    """Cross entropy with Mixup, CutMix and label smoothing, drawn from numpy's global generator.

    Args:
        config: see there.
        num_classes: C of the data.
        distillation: what takes the place of the labels, but for its ``label_weight``; it sees the mixed images.
    """

    def __init__(
        self, config: ClassificationConfig, num_classes: int, distillation: Distillation | None = None
    ) -> None:
        from timm.data import Mixup

        self._num_classes = num_classes
        self._smoothing = config.label_smoothing
        self._distillation = distillation
        self._mixup = None
        if config.mixes:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_probability,
                switch_prob=config.mixup_switch,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        """The batch's mean loss, in nats.

        Raises:
            LocAtError: the model, or the teacher, has another number of outputs than the data has classes.
        """
        images, targets = batch
        if self._mixup is not None:
            images, targets = self._mixup(images.clone(), targets)  # Mixup writes into its images
        logits = self._logits(model, images)
        if self._distillation is None:
            return self._label_loss(logits, targets)
        loss, weight = self._distillation(logits, images), self._distillation.config.label_weight
        return loss if weight == 0 else (1 - weight) * loss + weight * self._label_loss(logits, targets)

    def _label_loss(self, logits: Float[Tensor, "B C"], targets: Tensor) -> Float[Tensor, ""]:
        # Mixup's targets are smooth already
        return F.cross_entropy(logits, targets, label_smoothing=self._smoothing if self._mixup is None else 0.0)

    def check_batch(self, batch: tuple[Tensor, Tensor]) -> None:
        """Raise ``LocAtError`` for labels outside the classes, or an odd batch where images are paired."""
        _, labels = batch
        check_labels(labels, self._num_classes)
        if self._mixup is not None and len(labels) % 2:
            raise LocAtError(
                f"a batch has {len(labels)} images; Mixup and CutMix pair them, so it must be even: choose "
                "an even batch_size and drop the last, smaller batch, or set mixup and cutmix to 0"
            )

    def _logits(self, model: nn.Module, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C"]:
        logits: Tensor = model(images)
        if logits.shape[1] != self._num_classes:
            raise LocAtError(
                f"the model has {logits.shape[1]} outputs but the data has {self._num_classes} classes; "
                f"create the model with num_classes={self._num_classes}"
            )
        return logits.float()


def check_labels(labels: Int[Tensor, " B"], num_classes: int) -> None:
    """Raise ``LocAtError`` unless all labels lie in ``0 .. num_classes - 1``."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise LocAtError(
            f"a batch has label {high if high >= num_classes else low}, but there are {num_classes} classes, "
            f"0 to {num_classes - 1}; check the data set, or create the model with more num_classes"
        )


def evaluate_classifier(model: nn.Module, loader: Iterable[Any], accelerator: Accelerator) -> dict[str, float]:
    """Accuracy over a whole loader; the model is left in the mode it was in.

    Args:
        model: gives logits ``[B, C]``; on the accelerator's device.
        loader: batches ``(images, labels)``, each image once.
        accelerator: for device, precision and processes, which share the loader out.

    Returns:
        ``top1`` and, for more than five classes, ``top5`` as fractions; ``loss``, the mean cross entropy in
        nats.

    Raises:
        LocAtError: the loader is empty, or a label is none of the model's outputs.
    """
    shared: Any = loader
    if accelerator.num_processes > 1:
        shared = accelerator.prepare_data_loader(loader, device_placement=False)
    training = model.training
    model.eval()
    sums, count = [], 0
    with torch.no_grad():
        for images, labels in shared:
            scores = accelerator.gather_for_metrics(_scores(model, images, labels, accelerator))
            sums.append(scores.sum(dim=0))
            count += len(scores)
    model.train(training)
    if count == 0:
        raise LocAtError("the evaluation loader has no images; check the data's folder and split")
    means = (torch.stack(sums).cpu().double().sum(dim=0) / count).tolist()
    return dict(zip(("loss", "top1", "top5"), means, strict=False))


def _scores(model: nn.Module, images: Tensor, labels: Tensor, accelerator: Accelerator) -> Float[Tensor, "B M"]:
    """Loss, hit among the first and, for more than five classes, hit among the first five, an image a row."""
    device = accelerator.device
    with accelerator.autocast():
        logits = model(send_to_device(images, device)).float()
    num_classes = logits.shape[1]
    check_labels(labels, num_classes)
    labels = send_to_device(labels, device)
    losses = F.cross_entropy(logits, labels, reduction="none")
    hits = logits.topk(5 if num_classes > 5 else 1).indices == labels[:, None]
    columns = [losses, hits[:, 0].float()]
    if num_classes > 5:
        columns.append(hits.any(dim=1).float())
    return torch.stack(columns, dim=1)


def _moving_average(model: nn.Module, config: ClassificationConfig) -> Any | None:
    from timm.utils import ModelEmaV3

    # its other way goes by names, and would average a tensor with several of them (Jumbo's MLP) several times
    return None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay, exclude_buffers=True)


def _fingerprint(config: ClassificationConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in _NO_EFFECT_ON_WEIGHTS}
