"""``locatvit profile --backends``: which implementations of the op can serve a model, which one would, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from locatvit.analysis.cost import count, run_on_shapes, with_backend
from locatvit.errors import LocAtError, near_matches
from locatvit.ops.attention import BACKENDS, Backend, Request
from locatvit.recipes.profile import batch_size, build, fitted, height_width, resolved
from locatvit.recipes.profile_config import ProfileConfig
from locatvit.results import environment
from locatvit.training.runtime import describe_device

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_RECORDER = "recorder"


@dataclass(frozen=True)
class Answer:
    """What one backend says to a request.

    Attributes:
        why_not: the reason for which it cannot serve the request, or None.
        chosen: whether the model would take it.
    """

    backend: str
    why_not: str | None
    chosen: bool


@dataclass(frozen=True)
class Attentions:
    """The attentions of a model that ask for the same.

    Attributes:
        count: how many they are.
        request: what they ask for.
        answers: of every backend, in order of preference.
    """

    count: int
    request: Request
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class BackendsProfile:
    """The backends of a model.

    Attributes:
        config: what was asked, with image and batch size resolved.
        device: type of the device that was asked about; it need not be here.
        attentions: by distinct request, in the order of the blocks. Empty where nothing reaches the op.
        environment: versions, commit, device and date.
    """

    config: ProfileConfig
    device: str
    attentions: tuple[Attentions, ...]
    environment: dict[str, Any]

    def as_data(self) -> dict[str, Any]:
        """For a JSON file."""
        data = asdict(self)
        for each in data["attentions"]:
            each["request"]["dtype"] = str(each["request"]["dtype"]).removeprefix("torch.")
        return data


def profile_backends(config: ProfileConfig, device: str | None = None) -> BackendsProfile:
    """Ask every backend about every attention of a model with LocAt; nothing is computed.

    Args:
        config: ``backward`` asks for gradients, in training mode; ``seconds`` is not used.
        device: e.g. ``"cuda"``, also where there is none; None for the present device.

    Raises:
        LocAtError: an unknown model, device or precision, or one that LocAt cannot be put into, or that does not
            take such images.
    """
    kind = _device_type(config, device)
    with torch.device("meta"):  # shapes are enough
        model = build(config.model, "locat")
        config = resolved(config, model, torch.device(kind))
        model = fitted(model, config)
    count(model, height_width(config))  # has words for images that the model refuses
    found = requests_of(
        model, (batch_size(config), *height_width(config)), dtype=_DTYPES[config.precision], training=config.backward
    )
    requests = Counter(replace(request, device_type=kind) for request in found)
    name = config.model.locat.backend if config.model.locat else "auto"
    attentions = tuple(Attentions(number, request, ask(request, name)) for request, number in requests.items())
    return BackendsProfile(config, kind, attentions, environment(describe_device()))


def ask(request: Request, name: str = "auto") -> tuple[Answer, ...]:
    """The answer of every backend; ``name`` is what the model's configuration has.

    Raises:
        LocAtError: no backend has this name.
    """
    if name not in ("auto", *BACKENDS):
        raise LocAtError(f"backend {name!r} is unknown; {near_matches(name, [*BACKENDS, 'auto'])}")
    reasons = {backend.name: backend.why_not(request) for backend in BACKENDS.values()}
    able = [backend for backend, reason in reasons.items() if reason is None]
    chosen = able[0] if name == "auto" else name
    return tuple(
        Answer(backend, reason, chosen=backend == chosen and reason is None) for backend, reason in reasons.items()
    )


def requests_of(
    model: nn.Module, images: tuple[int, int, int], *, dtype: torch.dtype = torch.float32, training: bool = False
) -> list[Request]:
    """What each attention of ``model`` asks of the op, in the order of the blocks; nothing is computed.

    Args:
        model: with LocAt, on any device, also on ``torch.device("meta")``. Its device type does not count: the
            requests are a CPU's.
        images: how many, and their (height, width) in pixels.
        dtype: of the arithmetic; other than float32 by autocast.
        training: in training mode and with gradients for the weights that ask for them.
    """
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with _recorded(model) as requests:
        run_on_shapes(model, images, autocast, training=training)
    return requests


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[Request]]:
    """The requests that the op gets from ``model``. It is served by a backend that only takes note."""
    requests: list[Request] = []
    BACKENDS[_RECORDER] = Backend(_RECORDER, requests.append, lambda q, k, v, *_: torch.empty_like(v))
    try:
        with with_backend(model, _RECORDER):
            yield requests
    finally:
        del BACKENDS[_RECORDER]


def _device_type(config: ProfileConfig, device: str | None) -> str:
    if config.precision not in _DTYPES:
        raise LocAtError(f"precision is {config.precision!r}; it must be one of {', '.join(_DTYPES)}")
    if device is None:
        present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        kind = "cpu" if present is None else present.type
    else:
        kind = _parsed(device)
    if kind == "cpu" and config.precision == "fp16":
        raise LocAtError("precision is 'fp16'; it needs a GPU, and this is a CPU; use 'bf16' or 'no', or name a device")
    return kind


def _parsed(device: str) -> str:
    try:
        return torch.device(device).type
    except RuntimeError as error:
        raise LocAtError(f"device is {device!r}; it must be one that torch knows, such as cpu or cuda") from error
