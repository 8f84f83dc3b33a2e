"""A trained segmentation run as a function: a photo in, a class for each of its pixels out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from locatvit.backbones.checkpoint import weights_digest
from locatvit.data.config import SegmentationAugment
from locatvit.data.loader import kept_random_state
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import Colour, voc_colours
from locatvit.data.transforms import segmentation_transform
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import FeaturesFn, frozen, frozen_features
from locatvit.evaluation.segmentation import build_head, predict
from locatvit.recipes.backbone import accept_sizes, only_size
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.folder import plain_data, read_config
from locatvit.recipes.run import ModelPlan, saved_model
from locatvit.recipes.segmentation import HEAD_FILE
from locatvit.results import CONFIG_FILE, RESULT_FILE, Result, read_result
from locatvit.training.runtime import seed_everything

_HUB = "hf-hub:"


@dataclass(frozen=True)
class Segmenter:
    """Backbone and head of a finished segmentation run. Made by ``read_segmenter``.

    Attributes:
        result: the run's.
        classes: names; the place is the class.
        colours: one a class, the data set's own or PASCAL VOC's.
        head_digest: 16 hexadecimal digits of the SHA-256 of the head's file.
        digest: likewise of all that decides a prediction: head, backbone, test-time transform and protocol.
    """

    result: Result
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    head_digest: str
    digest: str
    _features_fn: FeaturesFn
    _head: nn.Module
    _augment: SegmentationAugment
    _protocol: SegmentationConfig
    _device: torch.device

    def predict(self, image: Any) -> Int64[np.ndarray, "H W"]:
        """The class of every pixel of an image, as the run's evaluation predicts it.

        Args:
            image: a PIL image in RGB, of any size.
        """
        transform = segmentation_transform(self._augment, training=False)
        pixels, _ = transform(image, torch.empty(0, 0, dtype=torch.long))
        with frozen(self._head):
            labels = predict(
                self._features_fn, self._head, pixels[None].to(self._device), (image.height, image.width),
                self._protocol,
            )  # fmt: skip
        return labels[0].cpu().numpy()


def read_segmenter(
    run_dir: Path, device: torch.device | str = "cpu", *, checkpoint: str | Path | None = None
) -> Segmenter:
    """The segmenter of a finished segmentation run.

    Args:
        run_dir: the run's folder.
        device: where it computes.
        checkpoint: where the backbone's weights are now, if they were moved since.

    Raises:
        LocAtError: no such run, one that has not ended, or a run of another task; a backbone whose weights are gone or
            are others than those that the head was trained on; a head that does not fit.
    """
    run_dir, device = Path(run_dir), torch.device(device)
    result = _read_result(run_dir)
    config = read_config(run_dir)
    try:
        model = saved_model(config["model"])
        augment = SegmentationAugment(**config["augment"]).resolved()
        protocol = SegmentationConfig(**config["protocol"]).resolved()
        name, weights = config["data"]["name"], result.model["weights"]
        trained_in = Path(config["run_dir"])
    except (TypeError, KeyError) as error:
        raise LocAtError(
            f"{run_dir} was written by another version of locatvit ({error}); train the head again"
        ) from error
    checkpoint = _checkpoint(run_dir, trained_in, model.checkpoint, checkpoint)
    backbone = _backbone(replace(model, checkpoint=checkpoint), protocol.seed).to(device)
    accept_sizes(backbone, only_size(protocol, augment))
    _check_weights(run_dir, backbone, weights)
    features_fn = frozen_features(backbone, layer=protocol.layer, norm=bool(protocol.norm))
    classes = tuple(result.per_class)
    head, head_digest = _head(run_dir, features_fn, augment, protocol, len(classes), device)
    known = SETS.get(name)
    decisive = {
        "head": head_digest,
        "backbone": weights,
        "augment": plain_data(augment),
        "protocol": plain_data(protocol),
    }
    return Segmenter(
        result, classes, known.palette if known and known.classes == classes else voc_colours(len(classes)),
        head_digest, _digest(json.dumps(decisive).encode()), features_fn, head, augment, protocol, device,
    )  # fmt: skip


def _read_result(run_dir: Path) -> Result:
    if not run_dir.is_dir():
        raise LocAtError(f"there is no run {run_dir}; give the folder of a finished segmentation run")
    missing = [name for name in (CONFIG_FILE, HEAD_FILE, RESULT_FILE) if not (run_dir / name).is_file()]
    if (run_dir / RESULT_FILE).is_file() and (task := read_result(run_dir).task) != "segmentation":
        raise LocAtError(
            f"{run_dir} is a run of {task}, not of segmentation; train a head first: locatvit segment "
            f"--backbone {run_dir}"
        )
    if missing:
        raise LocAtError(
            f"{run_dir} is no finished segmentation run, it lacks {', '.join(missing)}; run `locatvit segment` to its "
            "end first"
        )
    return read_result(run_dir)


def _backbone(model: ModelConfig, seed: int) -> nn.Module:
    with kept_random_state():
        # a backbone without weights is random, but the same one again
        seed_everything(seed)
        return ModelPlan(model).build()


def _checkpoint(run_dir: Path, trained_in: Path, saved: str | None, given: str | Path | None) -> str | None:
    """Where the backbone's weights are: as given, as saved, or as saved seen from where the run was started."""
    if given is not None or saved is None or saved.startswith(_HUB) or Path(saved).exists():
        return saved if given is None else str(given)
    parts, tail = run_dir.resolve().parts, trained_in.parts
    if parts[-len(tail) :] == tail and (moved := Path(*parts[: -len(tail)], saved)).exists():
        return str(moved)
    raise LocAtError(
        f"the backbone of {run_dir} had its weights from {saved}, where they are not any more; give their place by "
        "--checkpoint"
    )


def _check_weights(run_dir: Path, backbone: nn.Module, trained_on: str) -> None:
    if (found := weights_digest(backbone)) != trained_on:
        raise LocAtError(
            f"the head of {run_dir} was trained on a backbone with the weights {trained_on} (digest), and this one has "
            f"{found}; give the weights of then by --checkpoint, or train the head again"
        )


def _head(
    run_dir: Path, features_fn: FeaturesFn, augment: SegmentationAugment, protocol: SegmentationConfig,
    num_classes: int, device: torch.device,
) -> tuple[nn.Module, str]:  # fmt: skip
    """The trained head and the digest of its file."""
    path = run_dir / HEAD_FILE
    content = path.read_bytes()
    side = protocol.window_size or augment.short_side or 1
    width = features_fn(torch.zeros(1, 3, side, side, device=device)).patches.shape[-1]
    with kept_random_state():
        head = build_head(protocol, width, num_classes)
    try:
        head.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LocAtError(f"{path} is no head of this run ({reason}); restore it, or train it again") from error
    return head.to(device), _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
