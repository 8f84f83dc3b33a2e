"""What a model costs with LocAt and without: counted, and measured on the present device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from locatvit.analysis.cost import Cost, count
from locatvit.analysis.memory import peak_memory
from locatvit.analysis.timing import Spread, Step, by_turns, forward_step, training_step
from locatvit.backbones.add import add_locat
from locatvit.backbones.registry import MODELS, check_name, create_model, create_plain
from locatvit.errors import LocAtError
from locatvit.evaluation.extract import accept_any_size
from locatvit.recipes.profile_config import ProfileConfig, ProfileModel
from locatvit.results import environment
from locatvit.training.runtime import describe_device, make_accelerator

_CPU_BATCH, _ACCELERATOR_BATCH = 8, 128
_STEPS: dict[str, Callable[..., Step]] = {"forward": forward_step, "forward + backward": training_step}
# keywords of our models that the plain ones do not have
_LOCAT_KWARGS = ("locat", "gaug", "prr", "no_pos_emb")


@dataclass(frozen=True)
class Speed:
    """Of one kind of step.

    Attributes:
        images_per_second: over the turns.
        peak_bytes: the most memory held at a time, model included; None where the device does not tell.
    """

    images_per_second: Spread
    peak_bytes: int | None


@dataclass(frozen=True)
class ModelProfile:
    """What one model costs.

    Attributes:
        cost: parameters, and multiply-adds of an image.
        speeds: by kind of step, ``"forward"`` and, if asked for, ``"forward + backward"``.
    """

    cost: Cost
    speeds: dict[str, Speed]


@dataclass(frozen=True)
class Profile:
    """What a model costs, plain and with LocAt.

    Attributes:
        config: what was measured, with image and batch size resolved.
        plain: the host.
        locat: with LocAt; None where LocAt cannot be put into it.
        why_no_locat: the reason for that, in one line.
        speed_ratio: by kind of step, LocAt's images a second over the plain model's, turn by turn.
        environment: versions, commit, device and date.
    """

    config: ProfileConfig
    plain: ModelProfile
    locat: ModelProfile | None
    why_no_locat: str | None
    speed_ratio: dict[str, Spread]
    environment: dict[str, Any]


def profile(config: ProfileConfig) -> Profile:
    """Count, then measure memory and time on the device that a training would take.

    Raises:
        LocAtError: an unknown model, one that cannot be created or does not take such images, a precision that the
            device does not have, or too little memory.
    """
    check_name(config.model.name)
    accelerator = make_accelerator(config.precision)
    device = accelerator.device
    models, reason = _models(config.model)
    config = resolved(config, models["plain"], device)
    models = {kind: fitted(model, config) for kind, model in models.items()}
    costs = {kind: count(model, height_width(config)) for kind, model in models.items()}
    speeds: dict[str, dict[str, Speed]] = {kind: {} for kind in models}
    ratios: dict[str, Spread] = {}
    for name in _STEPS if config.backward else ("forward",):
        with _too_little_memory_told(config, device):
            peaks = [peak_memory(_make_step, config, kind, name, device=device) for kind in models]
            steps = [_step(model, config, name, accelerator) for model in models.values()]
            turns = by_turns(steps, config.seconds, device)
        for kind, peak, seconds in zip(models, peaks, turns, strict=True):
            speeds[kind][name] = Speed(Spread.of([batch_size(config) / taken for taken in seconds]), peak)
        if len(turns) == 2:
            ratios[name] = Spread.of([plain / locat for plain, locat in zip(*turns, strict=True)])
    profiles = {kind: ModelProfile(costs[kind], speeds[kind]) for kind in models}
    stamp = environment(describe_device(device))
    return Profile(config, profiles["plain"], profiles.get("locat"), reason, ratios, stamp)


def _models(model: ProfileModel) -> tuple[dict[str, nn.Module], str | None]:
    """The model plain and with LocAt; or plain alone, where nobody asked for LocAt's settings, and the reason."""
    if _is_ours(model.name):
        with_locat = build(model, "locat")  # first: its creation has words for wrong keywords
        return {"plain": build(model, "plain"), "locat": with_locat}, None
    models = {"plain": build(model, "plain")}
    try:
        return {**models, "locat": build(model, "locat")}, None
    except LocAtError as error:
        if model.locat is not None:
            raise
        return models, str(error)


def _is_ours(name: str) -> bool:
    return name in MODELS and MODELS[name].has_locat


def build(model: ProfileModel, kind: str) -> nn.Module:
    """The model, ``"plain"`` or with ``"locat"``; raises ``LocAtError`` where that cannot be."""
    for keyword in _LOCAT_KWARGS:
        if keyword in model.kwargs:
            raise LocAtError(
                f"model.kwargs has {keyword}, which the plain model does not take; LocAt's settings go to model.locat"
            )
    if not _is_ours(model.name):
        plain = create_model(model.name, **model.kwargs)
        return plain if kind == "plain" else add_locat(plain, model.locat)
    if kind == "plain":
        return create_plain(model.name, **model.kwargs)
    return create_model(model.name, locat=model.locat, **model.kwargs)


def resolved(config: ProfileConfig, model: nn.Module, device: torch.device) -> ProfileConfig:
    """With the model's own size and the device's batch, where none are given."""
    default_batch = _CPU_BATCH if device.type == "cpu" else _ACCELERATOR_BATCH
    return replace(
        config,
        image_size=config.image_size or _own_size(model, config),
        batch_size=config.batch_size or default_batch,
    )


def _own_size(model: Any, config: ProfileConfig) -> tuple[int, int]:
    """(height, width) of the images that the model is made for."""
    size = config.model.kwargs.get("img_size", model.pretrained_cfg["input_size"][-2:])
    return (size, size) if isinstance(size, int) else tuple(size)


def height_width(config: ProfileConfig) -> tuple[int, int]:
    """Of the images, in pixels; of a resolved configuration."""
    size = config.image_size
    assert size is not None, "the size is resolved"
    return (size, size) if isinstance(size, int) else size


def batch_size(config: ProfileConfig) -> int:
    """Of a resolved configuration."""
    assert config.batch_size is not None, "the batch is resolved"
    return config.batch_size


def fitted(model: nn.Module, config: ProfileConfig) -> nn.Module:
    """The model, switched to other image sizes where it is made for another one."""
    own_size = _own_size(model, config)
    if height_width(config) == own_size:
        return model
    try:
        return accept_any_size(model)
    except LocAtError as error:
        raise LocAtError(
            f"image_size is {config.image_size} but {config.model.name} is made for {own_size}, for good; make one "
            f"for your size: --model.kwargs.img_size {config.image_size} instead of --image_size"
        ) from error


def _step(model: nn.Module, config: ProfileConfig, name: str, accelerator: Accelerator) -> Step:
    """One of ``_STEPS`` on the present device, on images of noise."""
    images = torch.randn(batch_size(config), 3, *height_width(config), device=accelerator.device)
    return _STEPS[name](model.to(accelerator.device), images, accelerator.autocast)


def _make_step(config: ProfileConfig, kind: str, name: str) -> Step:
    """The same from its beginning, the model made, for measuring memory."""
    model = fitted(build(config.model, kind), config)
    return _step(model, config, name, make_accelerator(config.precision))


@contextmanager
def _too_little_memory_told(config: ProfileConfig, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        killed_or_refused = isinstance(error, (MemoryError, torch.OutOfMemoryError, BrokenProcessPool))
        if not killed_or_refused and "can't allocate memory" not in str(error):  # torch's words on a CPU
            raise
        height, width = height_width(config)
        raise LocAtError(
            f"batch_size is {config.batch_size}; so many images of {height} x {width} pixels need more memory than "
            f"there is ({describe_device(device)}): give a smaller one"
        ) from error
