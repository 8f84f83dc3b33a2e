"""Every model with every variant in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from small_models import cases, stir

pytestmark = pytest.mark.usefixtures("one_thread")


def errors(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Relative ones of autocast and of the model in bfloat16."""
    want = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(images)
    whole = model.bfloat16()(images.bfloat16())
    first, second = (((got.float() - want).norm() / want.norm()).item() for got in (autocast, whole))
    return first, second


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch, of RMS norms under autocast
@torch.no_grad()
@cases(lambda subject, config: config.position_embedding)
def test_bfloat16_is_as_close_as_twice_the_hosts(subject, config):
    model, images = stir(subject.build(config)), subject.images(batch=16)
    host = subject.host_of(model)
    for error, of_host in zip(errors(model, images), errors(host, images), strict=True):
        assert error <= 2 * of_host


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@cases()
def test_gradients_in_bfloat16_are_finite(subject, config):
    model, images = stir(subject.build(config)).train(), subject.images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.zero_grad()
    model.bfloat16()(images.bfloat16()).float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
