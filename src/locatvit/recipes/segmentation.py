"""Train a segmentation head on a frozen backbone, from a configuration to a result."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from locatvit.data.transforms import segmentation_transform
from locatvit.evaluation.extract import accept_any_size, frozen_features
from locatvit.evaluation.segmentation import (
    SegmentationHead,
    build_optimizer,
    evaluate_segmentation,
    segmentation_loss,
)
from locatvit.recipes.classification import fingerprint
from locatvit.recipes.config import SegmentRun
from locatvit.recipes.run import (
    build_loaders,
    build_model,
    describe_data,
    describe_model,
    plain_data,
    read_run_model,
    write_config,
)
from locatvit.results import CONFIG_FILE, Result, environment, write_result
from locatvit.storage import atomic_write
from locatvit.training.checkpoint import Resume
from locatvit.training.loop import fit
from locatvit.training.optim import one_cycle_schedule
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything

HEAD_FILE = "head.safetensors"


def segment(run: SegmentRun, resume: Resume = "auto") -> Result:
    """Train the head, measure it, and leave config, metrics, checkpoints, head and result in ``run.run_dir``.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts.
    """
    started = time.monotonic()
    protocol = run.protocol
    accelerator = make_accelerator(protocol.precision)
    train_loader, val_loader = build_loaders(
        run.data, "segmentation",
        segmentation_transform(run.augment, training=True), segmentation_transform(run.augment, training=False),
        batch_size=protocol.batch_size, val_batch_size=1,
        num_workers=protocol.num_workers, seed=protocol.seed,
    )  # fmt: skip
    model_config = run.model if run.backbone is None else read_run_model(run.backbone)
    run = replace(run, model=model_config)
    backbone = accept_any_size(build_model(model_config)).to(accelerator.device)
    features_fn = frozen_features(backbone, layer=protocol.layer, norm=protocol.norm)
    spec = train_loader.dataset.spec
    seed_everything(protocol.seed)
    head = SegmentationHead(
        _width(features_fn, train_loader, accelerator.device), spec.num_classes, protocol.hidden_dim
    )
    head.to(accelerator.device)
    optimizer = build_optimizer(head, protocol)
    scores: dict[str, Any] = {}

    def loss_fn(head: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return segmentation_loss(head, features_fn(images), masks, spec.ignore_index)

    def evaluate() -> dict[str, float]:
        metrics, scores["per_class"] = evaluate_segmentation(
            features_fn, head, val_loader, spec.classes, spec.ignore_index, accelerator.device
        )
        return metrics

    if accelerator.is_main_process:
        write_config(run.run_dir, run)
    report = fit(
        model=head, loss_fn=loss_fn, loader=train_loader, optimizer=optimizer,
        scheduler=one_cycle_schedule(
            optimizer, num_updates=protocol.num_updates, pct_start=protocol.pct_start,
            div_factor=protocol.div_factor, final_div_factor=protocol.final_div_factor,
        ),
        num_updates=protocol.num_updates, run_dir=run.run_dir, accelerator=accelerator,
        evaluate=evaluate, evaluate_every=protocol.evaluate_every, best_metric="miou", resume=resume,
        checkpoint_every=protocol.evaluate_every, description=run.run_dir.name,
        fingerprint=fingerprint(
            {"model": run.model, "data": run.data, "augment": run.augment, "protocol": protocol}
        ),
    )  # fmt: skip
    if not scores:  # a run that had ended before: nothing was evaluated now
        evaluate()
    result = _result(run, backbone, val_loader, report.metrics, scores["per_class"], str(accelerator.device))
    result = replace(result, seconds=round(time.monotonic() - started, 1))
    if accelerator.is_main_process:
        state = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
        atomic_write(run.run_dir / HEAD_FILE, lambda temporary: save_file(state, temporary))
        write_result(run.run_dir, result)
    return result


def _width(features_fn: Any, loader: Any, device: Any) -> int:
    """The patch tokens' width, seen on one image rather than asked of each kind of host."""
    image, _ = loader.dataset[(0, 0)]
    return features_fn(image[None].to(device)).patches.shape[-1]


def _result(
    run: SegmentRun, backbone: nn.Module, val_loader: Any, metrics: dict[str, float],
    per_class: dict[str, float | None], device: str,
) -> Result:  # fmt: skip
    model = describe_model(backbone, run.model)
    config = plain_data(run)
    if run.backbone is not None:
        model["checkpoint_run"] = run.backbone.name
        config["backbone"] = yaml.safe_load((run.backbone / CONFIG_FILE).read_text(encoding="utf-8"))[
            "training"
        ]
    return Result(
        task="segmentation",
        protocol=run.protocol.protocol,
        model=model,
        data=describe_data(run.data, val_loader),
        metrics=metrics,
        per_class=per_class,
        config=config,
        environment=environment(describe_device(device)),
    )
