"""How long steps take: by turns, so that what else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Step = Callable[[], None]
Autocast = Callable[[], AbstractContextManager[object]]

# Untimed turns before the first: memory, thread pools and the choice of kernels settle.
_WARM_UP = 2
_LEAST_TURNS = 5


@dataclass(frozen=True)
class Spread:
    """Of values that scatter.

    Attributes:
        median: the middle one.
        low, high: the middle half lies between them.
        count: how many values there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of two values or more."""
        low, _, high = statistics.quantiles(values, n=4)
        return cls(statistics.median(values), low, high, len(values))


def forward_step(model: nn.Module, images: Tensor, autocast: Autocast = nullcontext) -> Step:
    """A forward pass without gradients; puts the model into evaluation mode."""
    model.eval()

    def step() -> None:
        with torch.inference_mode(), autocast():
            model(images)

    return step


def training_step(model: nn.Module, images: Tensor, autocast: Autocast = nullcontext) -> Step:
    """A forward and a backward pass, of some loss; puts the model into training mode."""
    model.train()

    def step() -> None:
        with autocast():
            loss = model(images).square().mean()
        loss.backward()
        model.zero_grad()

    return step


def by_turns(steps: Sequence[Step], seconds: float, device: torch.device | None = None) -> list[list[float]]:
    """Seconds of single steps, for each of ``steps``: warmed up, then by turns, each turn in the other order.

    Args:
        steps: what is timed.
        seconds: of timing; at least five turns are taken.
        device: which must have ended its work before the clock is read; None for a CPU.
    """
    wait = _wait_for(device)
    for step in [*steps] * _WARM_UP:
        step()
    taken: list[list[float]] = [[] for _ in steps]
    order = range(len(steps))
    end = time.perf_counter() + seconds
    while len(taken[0]) < _LEAST_TURNS or time.perf_counter() < end:
        order = order[::-1]
        for index in order:
            wait()
            start = time.perf_counter()
            steps[index]()
            wait()
            taken[index].append(time.perf_counter() - start)
    return taken


def _wait_for(device: torch.device | None) -> Callable[[], None]:
    if device is None or device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
