"""Whole models: ViT with LocAt beside the same without, as timm makes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import timm
import torch
from torch import Tensor, nn

from benchmarks.attention.cases import ModelCase
from benchmarks.attention.checks import refuse
from benchmarks.attention.contenders import DENSE, PLAIN, dtype_of, kernels_of, taking_part
from benchmarks.attention.dense import use_dense_gaussian
from locatvit import LocAtConfig, add_locat
from locatvit.analysis.timing import Autocast, Step, forward_step, training_step
from locatvit.recipes.profile_backends import requests_of

# float32 against float32, through a whole model; as in the tests of exactness
_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4
# bfloat16 over what the plain model is off, of gradients the reference, too. Those of a whole model scatter more than
# outputs do; each one of the op is compared by itself, at 2, where the op is measured alone.
_TIMES_PLAIN = {"output": 2, "gradients": 4}


def contenders(case: ModelCase, device: torch.device) -> tuple[str, ...]:
    """See ``taking_part``."""
    with torch.device("meta"):
        model = make_model(case, "auto")
    size = (case.image_size, case.image_size)
    requests = requests_of(model, (case.batch_size, *size), dtype=dtype_of(case), training=case.train)
    return taking_part(case, [replace(request, device_type=device.type) for request in requests])


def make_model(case: ModelCase, contender: str) -> nn.Module:
    """The model, in the mode of the case; a contender other than plain and dense is a backend, or ``"auto"``."""
    torch.manual_seed(0)
    # other sizes than the trained one come in as a user would have them
    options = {} if case.image_size == 224 else {"dynamic_img_size": True}
    model = timm.create_model(case.model, **options)
    if contender == DENSE:
        use_dense_gaussian(add_locat(model))
    elif contender != PLAIN:
        add_locat(model, LocAtConfig(backend=contender))
    return model.train(case.train)


def make_images(case: ModelCase, device: torch.device) -> Tensor:
    """Noise, the same each time."""
    torch.manual_seed(1)
    return torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)


def make_step(case: ModelCase, contender: str, device: torch.device) -> Step:
    """A forward pass without gradients, or a forward and a backward pass in training mode."""
    model = make_model(case, contender).to(device)
    arithmetic = partial(_arithmetic, case, contender, device)
    return (training_step if case.train else forward_step)(model, make_images(case, device), arithmetic)


def verify(case: ModelCase, contender: str, device: torch.device) -> None:
    """Compare one image's output, and in training all gradients, with ``backend="reference"`` in float32.

    In bfloat16 the output may be off by twice what the plain model's is there.

    Raises:
        LocAtError: they are further off; then there is nothing to report.
    """
    images = make_images(case, device)[:1]
    model, reference = (make_model(case, name).to(device) for name in (contender, "reference"))
    reference.load_state_dict(model.state_dict())
    truth = _results(case, reference, images)
    if dtype_of(case) == torch.float32:
        _compare(case, contender, _results(case, model, images), truth)
        return
    plain = make_model(case, PLAIN).to(device)
    in_half = {
        name: _results(case, each, images, partial(_arithmetic, case, name, device))
        for name, each in ((contender, model), ("reference", reference), (PLAIN, plain))
    }
    errors = {name: _distance(got, truth) for name, got in in_half.items() if name != PLAIN}
    errors[PLAIN] = _distance(in_half[PLAIN], _results(case, plain, images))
    for part, times in _TIMES_PLAIN.items():
        bound = errors[PLAIN][part] if part == "output" else max(errors[PLAIN][part], errors["reference"][part])
        refuse(case.name, contender, part, errors[contender][part], times * bound)


@contextmanager
def _arithmetic(case: ModelCase, contender: str, device: torch.device) -> Iterator[None]:
    dtype = dtype_of(case)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), kernels_of(contender, device):
        yield


def _results(
    case: ModelCase, model: nn.Module, images: Tensor, arithmetic: Autocast = nullcontext
) -> dict[str, Tensor]:
    with torch.set_grad_enabled(case.train), arithmetic():
        output = model(images)
    if not case.train:
        return {"output": output}
    output.float().square().mean().backward()
    # a bias of the keys shifts all logits of a query alike: the gradient of qkv's bias is in part rounding only
    names = [name for name, _ in model.named_parameters() if not name.endswith("qkv.bias")]
    found = {name: model.get_parameter(name).grad for name in names}
    model.zero_grad()
    return {"output": output.detach(), **{f"gradient of {name}": x for name, x in found.items() if x is not None}}


def _compare(case: ModelCase, contender: str, got: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    for name, value in truth.items():
        error = ((got[name] - value).abs().max() / value.abs().max()).item()
        refuse(case.name, contender, name, error, _OUTPUT_TOLERANCE if name == "output" else _GRADIENT_TOLERANCE)


def _distance(got: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Root of the summed squares, over that of the truth: of the output, and of all gradients together."""
    sums = {"output": [0.0, 0.0], "gradients": [0.0, 0.0]}
    for name, value in truth.items():
        part = sums["output" if name == "output" else "gradients"]
        part[0] += (got[name].double() - value).square().sum().item()
        part[1] += value.double().square().sum().item()
    return {part: math.sqrt(off / size) if size else 0.0 for part, (off, size) in sums.items()}
