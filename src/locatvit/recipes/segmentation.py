"""Train a segmentation head on a frozen backbone, from a configuration to a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from locatvit.data.config import Normalisation
from locatvit.data.loader import Loader
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn, frozen_features
from locatvit.evaluation.heads import PatchHead, build_head
from locatvit.evaluation.segmentation import (
    build_optimizer,
    ramped_schedule,
    segmentation_loss,
)
from locatvit.features import Features
from locatvit.recipes.backbone import (
    accept_sizes,
    backbone_config,
    config_with_backbone,
    describe_backbone,
    only_size,
    own_normalisation,
)
from locatvit.recipes.config import SegmentRun
from locatvit.recipes.folder import RunFolder, fingerprint, plain_data
from locatvit.recipes.run import ModelPlan, batch_share, describe_data
from locatvit.recipes.segmentation_features import CACHE_FOLDER, FeatureSource, make_cache
from locatvit.recipes.segmentation_measure import Measure, split_loader
from locatvit.results import Result, environment
from locatvit.storage import write_bytes
from locatvit.training.checkpoint import Resume
from locatvit.training.loop import FitReport, fit
from locatvit.training.optim import one_cycle_schedule
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything

HEAD_FILE = "head.safetensors"

# Updates of the head between two checkpoints, at most; they are small.
_CHECKPOINT_EVERY = 500


def segment(run: SegmentRun, resume: Resume = "auto") -> Result:
    """Train the head, measure it, and leave config, metrics, checkpoints, head, sheets and result in ``run.run_dir``.

    A run that has ended with this configuration and these backbone weights is not trained again: its result
    is returned.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts. A run
            that is refused leaves the folder as it was.
    """
    run = replace(run, model=backbone_config(run.backbone, run.model))
    accelerator = make_accelerator(run.protocol.precision)
    seed_everything(run.protocol.seed)
    backbone = ModelPlan(run.model).build().to(accelerator.device)
    run, changed = _resolved(run, backbone)
    accept_sizes(backbone, only_size(run.protocol, run.augment))
    model = describe_backbone(backbone, run.model, run.backbone)
    folder = RunFolder(run.run_dir, run, HEAD_FILE, is_writer=accelerator.is_main_process)
    if (ended := folder.ended(resume, weights=model["weights"])) is not None:
        return ended
    features_fn = frozen_features(backbone, layer=run.protocol.layer, norm=bool(run.protocol.norm))
    training = _training_images(run, features_fn, model, accelerator)
    measure = Measure(run, features_fn, model, accelerator.device)
    head = _head(run, training, accelerator)
    measure.head = head
    report = _fit(
        run, head, training, measure,
        accelerator=accelerator, resume=resume, on_start=folder.begin, weights=model["weights"],
        description=folder.name,
    )  # fmt: skip
    per_class = measure.per_class()
    if accelerator.is_main_process:
        state = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
        write_bytes(folder.weights, save(state))
        measure.write_sheets(folder.path, f"{_name(model)} on {run.data.label or run.data.name}")
    result = Result(
        task="segmentation",
        protocol=run.protocol.protocol,
        model=model,
        data=describe_data(run.data, measure.loader),
        metrics=report.metrics,
        per_class=per_class,
        config=config_with_backbone(run, run.backbone),
        environment=environment(describe_device(accelerator.device)),
        seconds=round(report.seconds, 1),
        changed=changed,
    )
    concluded = folder.conclude(result, report)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and run.cache.dir is None:
        shutil.rmtree(folder.path / CACHE_FOLDER, ignore_errors=True)
    return concluded


def _resolved(run: SegmentRun, backbone: nn.Module) -> tuple[SegmentRun, dict[str, Any]]:
    """The run with the protocol's settings for these data and this model, and what of them is not as published."""
    data, mean_std = run.data.label or run.data.name, None
    if run.protocol.protocol == "linear":
        mean_std = _own_normalisation(run, backbone)
    changed = run.protocol.changed() | run.augment.changed(data, mean_std)
    resolved = replace(run, protocol=run.protocol.resolved(), augment=run.augment.resolved(data, mean_std))
    return resolved, plain_data(changed)


def _own_normalisation(run: SegmentRun, backbone: nn.Module) -> Normalisation:
    """Mean and standard deviation that the backbone was trained with, or what is given where it does not tell them."""
    mean_std = own_normalisation(backbone, run.backbone)
    if mean_std is None and run.augment.mean is not None and run.augment.std is not None:
        mean_std = run.augment.mean, run.augment.std
    if mean_std is None:
        raise LocAtError(
            "protocol linear takes the mean and standard deviation that the model was trained with, but "
            f"{run.model.name} does not tell them; give --augment.mean and --augment.std"
        )
    return mean_std


def _name(model: dict[str, Any]) -> str:
    """How a sheet calls the model: its plain twin has the same label."""
    return f"{model['label']} + LocAt" if model["locat"] else str(model["label"])


@dataclass(frozen=True)
class _Images:
    """Training images, how a batch of the loader becomes features and masks, and the features' width."""

    loader: Loader
    features_of: Callable[[Any], tuple[Features, Tensor]]
    width: int


def _training_images(
    run: SegmentRun, features_fn: FeaturesFn, model: dict[str, Any], accelerator: Accelerator
) -> _Images:
    assert run.protocol.batch_size is not None, "resolved"
    device, batch_size = accelerator.device, batch_share(run.protocol.batch_size, accelerator.num_processes)
    # the width of one image's features: no kind of host need be asked, and nothing is kept before the run is accepted
    if run.augment.random:
        loader = split_loader(run, "train", batch_size)
        image, _ = loader.dataset[(0, 0)]
        width = features_fn(image[None].to(device)).patches.shape[-1]
        return _Images(loader, lambda batch: (features_fn(batch[0]), batch[1]), width)
    cache = make_cache(run, "train", model, device)
    loader, source = split_loader(run, "train", batch_size, cache), FeatureSource(cache, features_fn, device)
    _, content = loader.dataset[(0, 0)]

    def known(batch: Any) -> tuple[Features, Tensor]:
        seen, masks = source(batch)
        return seen.features, masks

    return _Images(loader, known, source.look(content)[0].features.patches.shape[-1])


def _head(run: SegmentRun, images: _Images, accelerator: Accelerator) -> PatchHead:
    """The untrained head, for features of the backbone's width."""
    seed_everything(run.protocol.seed)
    head = build_head(run.protocol, images.width, images.loader.spec.num_classes).to(accelerator.device)
    if accelerator.num_processes == 1 or run.protocol.protocol != "linear":
        return head
    if accelerator.device.type != "cuda":
        raise LocAtError(
            f"protocol linear runs on {accelerator.num_processes} processes of a {accelerator.device.type}: its batch "
            "norm must see the whole batch, which works between GPUs only; use one process"
        )
    synchronised: PatchHead = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    return synchronised


def build_schedule(optimizer: Optimizer, protocol: SegmentationConfig) -> LRScheduler:
    """The learning rate of the protocol."""
    if protocol.protocol == "linear":
        return ramped_schedule(optimizer, protocol)
    names = ("num_updates", "pct_start", "div_factor", "final_div_factor")
    values = protocol.values()
    return one_cycle_schedule(optimizer, **{name: values[name] for name in names})


def _fit(
    run: SegmentRun, head: nn.Module, images: _Images, measure: Measure, *,
    accelerator: Accelerator, resume: Resume, on_start: Callable[[int], None], weights: str, description: str,
) -> FitReport:  # fmt: skip
    protocol, ignore_index = run.protocol, images.loader.spec.ignore_index
    assert ignore_index is not None, "data sets for segmentation have one"
    assert protocol.num_updates is not None, "resolved"
    assert protocol.evaluate_every is not None, "resolved"
    optimizer = build_optimizer(head, protocol)

    def loss_fn(head: nn.Module, batch: Any) -> Tensor:
        features, masks = images.features_of(batch)
        return segmentation_loss(head, features, masks, ignore_index)

    # the weights themselves, not where they lie, make the backbone
    backbone = {**plain_data(run.model), "checkpoint": None, "pretrained": False, "weights": weights}
    return fit(
        model=head, loss_fn=loss_fn, loader=images.loader, optimizer=optimizer,
        scheduler=build_schedule(optimizer, protocol),
        num_updates=protocol.num_updates, run_dir=run.run_dir, accelerator=accelerator,
        evaluate=measure, evaluate_every=protocol.evaluate_every, best_metric="miou",
        checkpoint_every=min(protocol.evaluate_every, _CHECKPOINT_EVERY), resume=resume, on_start=on_start,
        fingerprint=fingerprint(
            task="segmentation", model=backbone, data=run.data, augment=run.augment, protocol=protocol
        ),
        description=description,
    )  # fmt: skip
