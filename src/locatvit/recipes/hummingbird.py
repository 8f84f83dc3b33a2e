"""Dense retrieval on a frozen backbone, from a configuration to a result."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from locatvit.data import Split
from locatvit.data.loader import Loader
from locatvit.data.retrieval_transforms import MaskedTransform, memory_transform, query_transform
from locatvit.errors import LocAtError
from locatvit.evaluation.extract import FeaturesFn, frozen_features
from locatvit.evaluation.hummingbird import evaluate_hummingbird, make_metrics
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.evaluation.metrics import SegmentationScores
from locatvit.evaluation.patch_memory import Labels, Memory, remember, sampled
from locatvit.evaluation.retrieval import check_backend, make_search, placed
from locatvit.recipes.backbone import (
    accept_sizes,
    backbone_config,
    config_with_backbone,
    describe_backbone,
    last_fine_layer,
    own_normalisation,
)
from locatvit.recipes.folder import RunFolder, fingerprint, plain_data, read_config
from locatvit.recipes.hummingbird_config import HummingbirdRun
from locatvit.recipes.hummingbird_memory import MemoryParts, check_memory, memory_rows
from locatvit.recipes.run import ModelPlan, build_loader, describe_data
from locatvit.recipes.stages import Stages
from locatvit.results import RESULT_FILE, Result, environment, read_result, write_result
from locatvit.training.checkpoint import Resume
from locatvit.training.runtime import describe_device, make_accelerator, seed_everything


def hummingbird(run: HummingbirdRun, resume: Resume = "auto") -> Result:
    """Make the memory, label the validation images by it, and leave configuration and result in ``run.run_dir``.

    The memory lies in the folder while the run lasts: one that is killed goes on from its last part. A run that has
    ended with this configuration and these weights is not done again: its result is returned.

    Args:
        run: what to do.
        resume: "auto", or "never" to begin again and overwrite what is in the folder.

    Raises:
        LocAtError: anything that is wrong with the configuration, the data or the run; see the parts. A run that is
            refused leaves the folder as it was.
    """
    if resume not in ("auto", "never"):
        raise LocAtError(f"resume is {str(resume)!r}; it must be auto or never: dense retrieval has no checkpoints")
    started = time.monotonic()
    # TF32 would swap neighbours
    accelerator = make_accelerator("no", tf32=False)
    if accelerator.num_processes > 1:
        raise LocAtError(
            f"{accelerator.num_processes} processes were started; dense retrieval runs in one: start it without a "
            "launcher"
        )
    seed_everything(run.protocol.seed)
    check_backend(run.protocol.backend)
    run = replace(run, model=backbone_config(run.backbone, run.model))
    model = ModelPlan(run.model).build().to(accelerator.device)
    run, changed = _resolved(run, model)
    side = run.augment.image_size
    accept_sizes(model, (side, side) if run.augment.query_resize == "squash" else None)
    described = describe_backbone(model, run.model, run.backbone)
    folder = RunFolder(run.run_dir, run, RESULT_FILE, is_writer=True)
    if (ended := folder.ended(resume, weights=described["weights"])) is not None:
        return ended
    task = _Retrieval(run, model, accelerator.device, described["weights"])
    _check_folder(folder, run, described["weights"], resume)
    folder.begin(0)
    if resume == "never":
        task.parts.clear()
    (metrics, per_class), rows = task.run(folder.name)
    stamped = environment(describe_device(accelerator.device))
    stamped["versions"] |= _versions(run.protocol)
    result = Result(
        task="hummingbird",
        protocol=run.protocol.protocol,
        model=described,
        data=describe_data(run.data, task.queries) | {"memory_images": task.images.num_images, "memory_patches": rows},
        metrics=metrics,
        per_class=per_class,
        config=config_with_backbone(run, run.backbone),
        changed=changed,
        environment=stamped,
        seconds=round(time.monotonic() - started, 1),
    )
    write_result(folder.path, result)
    task.parts.clear()
    return result


class _Retrieval:
    """The loaders and the memory's parts of a run; all that can be refused is, before anything is written."""

    def __init__(self, run: HummingbirdRun, model: nn.Module, device: torch.device, weights: str) -> None:
        protocol = run.protocol
        assert protocol.layer is not None
        assert protocol.unlabelled is not None
        self.protocol, self.device = protocol, device
        self.features_fn = frozen_features(model, layer=protocol.layer, norm=protocol.norm)
        grid_size, width = _probe(self.features_fn, run.augment.image_size, device)
        stride = run.augment.image_size // grid_size[0]
        self.images = _loader(run, "train", memory_transform(run.augment), protocol.batch_size)
        at_query = protocol.measured_at == "query"
        transform = query_transform(run.augment, stride, resize_mask=at_query)
        # images in their own aspect make no batch
        squashed = run.augment.query_resize == "squash" and at_query
        self.queries = _loader(run, "val", transform, protocol.batch_size if squashed else 1)
        spec = self.images.spec
        assert spec.ignore_index is not None, "data sets for segmentation have one"
        self.labels = Labels(spec.classes, spec.ignore_index, protocol.unlabelled)
        make_metrics(self.labels, protocol)  # refuses what is not installed
        num_images, num_patches = self.images.num_images, grid_size[0] * grid_size[1]
        self.share, self.rows = memory_rows(protocol, num_images, num_patches)
        check_memory(protocol, self.rows, num_images, width, len(self.labels.names))
        key = _key(run, weights, num_images, self.labels)
        self.parts = MemoryParts(run.run_dir, key, self.images, protocol.augmentation_epochs)

    def run(self, name: str) -> tuple[SegmentationScores, int]:
        """The scores, and the number of patches in the memory."""
        protocol = self.protocol
        with Stages(name) as stages:
            told = stages.begin("memory", self.parts.num_batches)
            memory = self.parts.build(self._remember, self.rows, told)
            stages.end(f"{len(memory.features):,} patches in the memory")
            if len(memory.features) < protocol.neighbours:
                raise LocAtError(
                    f"neighbours is {protocol.neighbours} and the memory has {len(memory.features)} patches; give "
                    "fewer neighbours, or more training images"
                )
            search = make_search(protocol.backend, memory.features, self.device)
            told = stages.begin("queries", len(self.queries))
            scores = evaluate_hummingbird(
                self.features_fn, search, placed(memory.labels, self.device), self.queries, self.labels, protocol,
                self.device, lambda done, _: told(done),
            )  # fmt: skip
            stages.end(f"{self.queries.num_images:,} images, mIoU {100 * scores[0]['miou']:.2f} %")
        return scores, len(memory.features)

    def _remember(self, images: Tensor, masks: Tensor, place: int) -> Memory:
        generator = torch.Generator().manual_seed(self.protocol.seed + 2**31 * (1 + place))

        def keep(shares: Tensor, labelled: Tensor) -> Tensor:
            assert self.share is not None
            return sampled(shares, labelled, self.share, self.protocol.sampling, generator)

        features = self.features_fn(images.to(self.device))
        labels = self.labels.remembered(masks.to(self.device))
        found = remember(features, labels, len(self.labels.names), None if self.share is None else keep)
        return Memory(found.features.cpu(), found.labels.cpu())


def _resolved(run: HummingbirdRun, model: nn.Module) -> tuple[HummingbirdRun, dict[str, Any]]:
    """The run with everything that was null settled, and its settings that are not the protocol's, flat."""
    name, data = run.protocol.protocol, run.data.label or run.data.name
    layer, own = last_fine_layer(model), own_normalisation(model, run.backbone)
    protocol, augment = run.protocol.resolved(data, layer), run.augment.resolved(name, own)
    changed = {f"protocol.{key}": value for key, value in run.protocol.changed(data, layer).items()}
    changed |= {f"augment.{key}": value for key, value in run.augment.changed(name, own).items()}
    return replace(run, protocol=protocol, augment=augment), plain_data(changed)


def _probe(features_fn: FeaturesFn, side: int, device: torch.device) -> tuple[tuple[int, int], int]:
    """(grid, width) of the features of a square image."""
    features = features_fn(torch.zeros(1, 3, side, side, device=device))
    grid_size = features.grid_size
    if side % grid_size[0] or side % grid_size[1] or grid_size[0] != grid_size[1]:
        raise LocAtError(
            f"image_size is {side}, of which the backbone makes {grid_size[0]} x {grid_size[1]} patches; it must be a "
            "multiple of the patch"
        )
    return grid_size, features.patches.shape[2]


def _loader(run: HummingbirdRun, split: Split, transform: MaskedTransform, batch_size: int) -> Loader:
    return build_loader(
        run.data, "segmentation", split, transform,
        batch_size=batch_size, num_workers=run.protocol.num_workers, seed=run.protocol.seed, training=False,
    )  # fmt: skip


def _key(run: HummingbirdRun, weights: str, num_images: int, labels: Labels) -> str:
    """What the memory depends on."""
    no_part = ("neighbours", "temperature", "matching", "mean_over", "measured_at", "backend", "max_memory_gib")
    protocol = {name: value for name, value in plain_data(run.protocol).items() if name not in no_part}
    parts = fingerprint(weights=weights, data=run.data, augment=run.augment, protocol=protocol)
    content = json.dumps([parts, num_images, labels.names, labels.ignore_index], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_folder(folder: RunFolder, run: HummingbirdRun, weights: str, resume: Resume) -> None:
    """Refuse a folder with the result of something else.

    Raises:
        LocAtError: it has one, and is not to be overwritten.
    """
    if resume == "never" or not (folder.path / RESULT_FILE).is_file():
        return
    saved, now = fingerprint(config=read_config(folder.path)), fingerprint(config=plain_data(run))
    differing = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if read_result(folder.path).model.get("weights") != weights:
        differing.append("the backbone's weights")
    if differing:
        named = ", ".join(key.removeprefix("config.") for key in differing[:4])
        raise LocAtError(
            f"run_dir is {folder.path}, which has the result of another run: it differs in {named}; choose another "
            "folder, or give --resume never, which overwrites it"
        )


def _versions(protocol: HummingbirdConfig) -> dict[str, str]:
    """Of the libraries that had a part in the result besides those that always have."""
    names = {"faiss-cpu": protocol.backend == "faiss", "scipy": protocol.matching == "hungarian"}
    return {name: metadata.version(name) for name, used in names.items() if used}
