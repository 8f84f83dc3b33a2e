"""Train a classifier, from a configuration to a result."""

from __future__ import annotations

import time

from locatvit.backbones.checkpoint import save_checkpoint
from locatvit.data.transforms import classification_transform
from locatvit.recipes.config import TrainRun
from locatvit.recipes.run import (
    WEIGHTS_FILE,
    build_loaders,
    build_model,
    describe_data,
    describe_model,
    plain_data,
    write_config,
)
from locatvit.results import Result, environment, write_result
from locatvit.training.checkpoint import Resume
from locatvit.training.classification import evaluate_classifier, train_classifier
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything

# What may differ between the start and the resumption of a run: it does not touch the weights.
_FREE = ("run_dir", "root", "max_bad_images", "label")


def train(run: TrainRun, resume: Resume = "auto") -> Result:
    """Train, evaluate, and leave config, metrics, checkpoints, weights and result in ``run.run_dir``.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts.
    """
    started = time.monotonic()
    accelerator = make_accelerator(run.training.precision)
    train_loader, val_loader = build_loaders(
        run.data, "classification",
        classification_transform(run.augment, training=True), classification_transform(run.augment, training=False),
        batch_size=run.training.batch_size, val_batch_size=256,
        num_workers=run.training.num_workers, seed=run.training.seed,
    )  # fmt: skip
    num_classes = train_loader.dataset.spec.num_classes
    seed_everything(run.training.seed)
    model = build_model(run.model, num_classes)
    if accelerator.is_main_process:
        write_config(run.run_dir, run)
    metrics = train_classifier(
        model, train_loader, val_loader, run.training, run.run_dir,
        num_classes=num_classes, accelerator=accelerator, resume=resume,
        fingerprint=fingerprint({"model": run.model, "data": run.data, "augment": run.augment}),
        description=run.run_dir.name,
    )  # fmt: skip
    result = Result(
        task="classification",
        protocol="classification",
        model=describe_model(model, run.model),
        data=describe_data(run.data, val_loader),
        metrics=metrics,
        config=plain_data(run),
        environment=environment(describe_device(accelerator.device)),
        seconds=round(time.monotonic() - started, 1),
    )
    if accelerator.is_main_process:
        save_checkpoint(model, run.run_dir / WEIGHTS_FILE)
        write_result(run.run_dir, result)
    return result


def validate(run: TrainRun) -> Result:
    """Measure the model of ``run.model`` on the validation split; writes nothing."""
    started = time.monotonic()
    accelerator = make_accelerator(run.training.precision)
    train_loader, val_loader = build_loaders(
        run.data, "classification",
        classification_transform(run.augment, training=True), classification_transform(run.augment, training=False),
        batch_size=run.training.batch_size, val_batch_size=256,
        num_workers=run.training.num_workers, seed=run.training.seed,
    )  # fmt: skip
    model = build_model(run.model, train_loader.dataset.spec.num_classes).to(accelerator.device)
    return Result(
        task="classification",
        protocol="classification",
        model=describe_model(model, run.model),
        data=describe_data(run.data, val_loader),
        metrics=evaluate_classifier(model, val_loader, accelerator),
        config=plain_data(run),
        environment=environment(describe_device(accelerator.device)),
        seconds=round(time.monotonic() - started, 1),
    )


def fingerprint(parts: dict[str, object]) -> dict[str, object]:
    """What a checkpoint must agree in, flat; folders and names of folders are free to change."""
    flat: dict[str, object] = {}

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                if key not in _FREE:
                    add(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    add("", plain_data(parts))
    return flat
