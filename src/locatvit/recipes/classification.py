"""Train a classifier, from a configuration to a result."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

from locatvit.backbones.checkpoint import save_checkpoint
from locatvit.data import Split
from locatvit.data.loader import Loader
from locatvit.data.transforms import classification_transform
from locatvit.errors import LocAtError
from locatvit.recipes.config import TrainRun
from locatvit.recipes.folder import RunFolder, fingerprint, plain_data
from locatvit.recipes.run import (
    WEIGHTS_FILE,
    ModelPlan,
    batch_share,
    build_loader,
    describe_data,
    describe_model,
)
from locatvit.recipes.teacher import TeacherPlan
from locatvit.results import Result, environment
from locatvit.training.checkpoint import Resume
from locatvit.training.classification import evaluate_classifier, train_classifier
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything

# Images at once where no gradients are kept; the measures do not depend on it.
_VAL_BATCH_SIZE = 256


def train(run: TrainRun, resume: Resume = "auto") -> Result:
    """Train, evaluate, and leave config, metrics, checkpoints, weights and result in ``run.run_dir``.

    A run that has ended under this configuration is not trained again: its result is returned.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts. A run
            that is refused leaves the folder as it was.
    """
    accelerator = make_accelerator(run.training.precision)
    folder = RunFolder(run.run_dir, run, WEIGHTS_FILE, is_writer=accelerator.is_main_process)
    if (ended := folder.ended(resume)) is not None:
        return ended
    plan = ModelPlan(run.model)
    teacher_plan = None if run.distillation.teacher is None else TeacherPlan(run.distillation)
    batch_size = batch_share(run.training.batch_size, accelerator.num_processes)
    train_loader, val_loader = _loader(run, "train", batch_size), _loader(run, "val", _VAL_BATCH_SIZE)
    num_classes = train_loader.spec.num_classes
    # before the seed, so that the student starts as it does without a teacher
    distillation, taught = teacher_plan.build(run.augment, num_classes) if teacher_plan else (None, {})
    seed_everything(run.training.seed)
    model = plan.build(num_classes)
    parts = {"model": run.model, "data": run.data, "augment": run.augment, **taught}
    report = train_classifier(
        model, train_loader, val_loader, run.training, run.run_dir,
        num_classes=num_classes, accelerator=accelerator, distillation=distillation, resume=resume,
        on_start=folder.begin, fingerprint=fingerprint(task="classification", **parts), description=folder.name,
    )  # fmt: skip
    if accelerator.is_main_process:
        save_checkpoint(model, folder.weights)
    result = _result(run, model, val_loader, report.metrics, report.seconds, accelerator.device)
    result = replace(result, model={**result.model, **taught})
    return folder.conclude(result, report)


def validate(run: TrainRun) -> Result:
    """Measure the model of ``run.model`` on the validation split, which alone is opened; writes nothing.

    Raises:
        LocAtError: the model has no weights to measure; or what is wrong with model or data.
    """
    started = time.monotonic()
    if run.model.checkpoint is None and not run.model.pretrained:
        raise LocAtError(
            f"model {run.model.name!r} has random weights, so there is nothing to measure; give --run, "
            "--model.checkpoint, or --model.pretrained true"
        )
    accelerator = make_accelerator(run.training.precision)
    plan = ModelPlan(run.model)
    loader = _loader(run, "val", _VAL_BATCH_SIZE)
    model = plan.build(loader.spec.num_classes).to(accelerator.device)
    metrics = evaluate_classifier(model, loader, accelerator)
    return _result(run, model, loader, metrics, time.monotonic() - started, accelerator.device)


def _loader(run: TrainRun, split: Split, batch_size: int) -> Loader:
    return build_loader(
        run.data,
        "classification",
        split,
        classification_transform(run.augment, training=split == "train"),
        batch_size=batch_size,
        num_workers=run.training.num_workers,
        seed=run.training.seed,
    )


def _result(
    run: TrainRun, model: nn.Module, val_loader: Loader, metrics: dict[str, float], seconds: float,
    device: torch.device,
) -> Result:  # fmt: skip
    return Result(
        task="classification",
        protocol="classification",
        model=describe_model(model, run.model),
        data=describe_data(run.data, val_loader),
        metrics=metrics,
        config=plain_data(run),
        environment=environment(describe_device(device)),
        seconds=round(seconds, 1),
    )
