"""Turns, steps and spreads."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from locatvit.analysis.timing import Spread, by_turns, forward_step, training_step


class Watched(nn.Module):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.calls: list[tuple[bool, bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        self.calls.append((self.training, torch.is_grad_enabled(), out.dtype))
        return out


def bf16() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


def test_spread_by_hand() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 10.0]) == Spread(median=3.0, low=1.5, high=7.0, count=5)


def test_steps_take_turns_and_the_order_changes() -> None:
    log: list[str] = []
    taken = by_turns([lambda: log.append("a"), lambda: log.append("b")], seconds=1e-9)
    assert "".join(log) == "abab" + "ba" + "ab" + "ba" + "ab" + "ba"
    assert [len(seconds) for seconds in taken] == [5, 5]


def test_each_step_gets_its_own_time() -> None:
    """Sleep is never shorter than asked for; how much longer it is nobody knows."""
    short, long = by_turns([lambda: None, lambda: time.sleep(0.004)], seconds=0.05)
    assert min(long) >= 0.004
    assert min(short) < 0.004
    assert len(short) == len(long) >= 5


@pytest.mark.parametrize(("autocast", "dtype"), [((), torch.float32), ((bf16,), torch.bfloat16)])
def test_forward_step(autocast: tuple, dtype: torch.dtype) -> None:
    model = Watched().train()
    forward_step(model, torch.randn(2, 5), *autocast)()
    assert model.calls == [(False, False, dtype)]


@pytest.mark.parametrize(("autocast", "dtype"), [((), torch.float32), ((bf16,), torch.bfloat16)])
def test_training_step(autocast: tuple, dtype: torch.dtype) -> None:
    model = Watched().eval()
    gradients: list[Tensor] = []
    model.linear.weight.register_hook(gradients.append)
    step = training_step(model, torch.randn(2, 5), *autocast)
    step()
    step()
    assert model.calls == [(True, True, dtype)] * 2
    assert torch.equal(*gradients), "gradients of the first step were added to the second's"
    assert float(gradients[0].abs().sum()) > 0
