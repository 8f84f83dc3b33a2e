"""Train a segmentation head on a frozen backbone, from a configuration to a result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor, nn

from locatvit.backbones.checkpoint import weights_digest
from locatvit.data import Split
from locatvit.data.loader import Loader
from locatvit.data.transforms import segmentation_transform
from locatvit.errors import LocAtError
from locatvit.evaluation.extract import FeaturesFn, accept_any_size, frozen_features
from locatvit.evaluation.segmentation import (
    SegmentationHead,
    build_optimizer,
    evaluate_segmentation,
    segmentation_loss,
)
from locatvit.recipes.config import ModelConfig, SegmentRun
from locatvit.recipes.folder import RunFolder, fingerprint, plain_data, read_config
from locatvit.recipes.run import (
    ModelPlan,
    batch_share,
    build_loader,
    describe_data,
    describe_model,
    read_run_model,
)
from locatvit.results import Result, environment
from locatvit.storage import write_bytes
from locatvit.training.checkpoint import Resume
from locatvit.training.loop import FitReport, fit
from locatvit.training.optim import one_cycle_schedule
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything

HEAD_FILE = "head.safetensors"

# Updates of the head between two checkpoints, at most; they are small.
_CHECKPOINT_EVERY = 500

_log = logging.getLogger(__name__)


def segment(run: SegmentRun, resume: Resume = "auto") -> Result:
    """Train the head, measure it, and leave config, metrics, checkpoints, head and result in ``run.run_dir``.

    A run that has ended with this configuration and these backbone weights is not trained again: its result
    is returned.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts. A run
            that is refused leaves the folder as it was.
    """
    run = replace(run, model=_backbone_config(run))
    accelerator = make_accelerator(run.protocol.precision)
    seed_everything(run.protocol.seed)
    backbone = accept_any_size(ModelPlan(run.model).build()).to(accelerator.device)
    model = _describe_backbone(backbone, run)
    folder = RunFolder(run.run_dir, run, HEAD_FILE, is_writer=accelerator.is_main_process)
    if (ended := folder.ended(resume, weights=model["weights"])) is not None:
        return ended
    batch_size = batch_share(run.protocol.batch_size, accelerator.num_processes)
    # images are measured in their own aspect, so no two of them make a batch
    train_loader, val_loader = _loader(run, "train", batch_size), _loader(run, "val", 1)
    features_fn = frozen_features(backbone, layer=run.protocol.layer, norm=run.protocol.norm)
    head = _head(run, features_fn, train_loader, accelerator.device)
    measure = _Measure(features_fn, head, val_loader, accelerator.device)
    report = _fit(
        run, head, features_fn, train_loader, measure,
        accelerator=accelerator, resume=resume, on_start=folder.begin, weights=model["weights"],
        description=folder.name,
    )  # fmt: skip
    if accelerator.is_main_process:
        state = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
        write_bytes(folder.weights, save(state))
    result = Result(
        task="segmentation",
        protocol=run.protocol.protocol,
        model=model,
        data=describe_data(run.data, val_loader),
        metrics=report.metrics,
        per_class=measure.per_class(),
        config=_config_with_backbone(run),
        environment=environment(describe_device(accelerator.device)),
        seconds=round(report.seconds, 1),
    )
    return folder.conclude(result, report)


def _backbone_config(run: SegmentRun) -> ModelConfig:
    """The backbone's model and weights, from the run's folder or as they are given."""
    if run.backbone is None:
        if run.model.checkpoint is None and not run.model.pretrained:
            _log.warning(
                "the backbone %s has random weights; give trained ones by --backbone, --model.checkpoint or "
                "--model.pretrained", run.model.name,
            )  # fmt: skip
        return run.model
    found = read_run_model(run.backbone)
    if run.model not in (ModelConfig(), found):
        raise LocAtError(
            f"backbone is {run.backbone}, whose model is {found.name}, and model is given too; give one of them"
        )
    return found


def _describe_backbone(backbone: nn.Module, run: SegmentRun) -> dict[str, Any]:
    described = describe_model(backbone, run.model) | {"weights": weights_digest(backbone)}
    return described if run.backbone is None else described | {"checkpoint_run": run.backbone.resolve().name}


def _config_with_backbone(run: SegmentRun) -> dict[str, Any]:
    """The configuration, with the backbone's own training in the place of its folder."""
    config = plain_data(run)
    return config if run.backbone is None else config | {"backbone": read_config(run.backbone)["training"]}


def _loader(run: SegmentRun, split: Split, batch_size: int) -> Loader:
    return build_loader(
        run.data,
        "segmentation",
        split,
        segmentation_transform(run.augment, training=split == "train"),
        batch_size=batch_size,
        num_workers=run.protocol.num_workers,
        seed=run.protocol.seed,
    )


def _head(run: SegmentRun, features_fn: FeaturesFn, loader: Loader, device: torch.device) -> SegmentationHead:
    """The untrained head, as wide as the patch tokens of one image are: no kind of host need be asked."""
    image, _ = loader.dataset[(0, 0)]
    width = features_fn(image[None].to(device)).patches.shape[-1]
    seed_everything(run.protocol.seed)
    return SegmentationHead(width, loader.spec.num_classes, run.protocol.hidden_dim).to(device)


class _Measure:
    """Measures the head on the validation images, and keeps the last measure's figures by class."""

    def __init__(self, features_fn: FeaturesFn, head: nn.Module, loader: Loader, device: torch.device) -> None:
        self._features_fn, self._head, self._loader, self._device = features_fn, head, loader, device
        self._per_class: dict[str, float | None] | None = None

    def __call__(self) -> dict[str, float]:
        spec = self._loader.spec
        metrics, self._per_class = evaluate_segmentation(
            self._features_fn, self._head, self._loader, spec.classes, spec.ignore_index, self._device
        )
        return metrics

    def per_class(self) -> dict[str, float | None]:
        """Of the last measure; measures where none was taken, as for a run that had ended before."""
        if self._per_class is None:
            self()
        assert self._per_class is not None
        return self._per_class


def _fit(
    run: SegmentRun, head: nn.Module, features_fn: FeaturesFn, loader: Loader, measure: _Measure, *,
    accelerator: Accelerator, resume: Resume, on_start: Callable[[int], None], weights: str, description: str,
) -> FitReport:  # fmt: skip
    protocol, ignore_index = run.protocol, loader.spec.ignore_index
    assert ignore_index is not None, "data sets for segmentation have one"
    optimizer = build_optimizer(head, protocol)
    scheduler = one_cycle_schedule(
        optimizer, num_updates=protocol.num_updates, pct_start=protocol.pct_start,
        div_factor=protocol.div_factor, final_div_factor=protocol.final_div_factor,
    )  # fmt: skip

    def loss_fn(head: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return segmentation_loss(head, features_fn(images), masks, ignore_index)

    # the weights themselves, not where they lie, make the backbone
    backbone = {**plain_data(run.model), "checkpoint": None, "pretrained": False, "weights": weights}
    return fit(
        model=head, loss_fn=loss_fn, loader=loader, optimizer=optimizer, scheduler=scheduler,
        num_updates=protocol.num_updates, run_dir=run.run_dir, accelerator=accelerator,
        evaluate=measure, evaluate_every=protocol.evaluate_every, best_metric="miou",
        checkpoint_every=min(protocol.evaluate_every, _CHECKPOINT_EVERY), resume=resume, on_start=on_start,
        fingerprint=fingerprint(
            task="segmentation", model=backbone, data=run.data, augment=run.augment, protocol=protocol
        ),
        description=description,
    )  # fmt: skip
