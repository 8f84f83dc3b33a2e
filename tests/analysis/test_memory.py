"""Peak memory, of steps whose need is known."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from locatvit.analysis.memory import peak_memory

MIB = 2**20


def holds(mib: int, threads: int) -> Callable[[], None]:
    """A step that fills so much memory and lets it go, in a process that has as many threads as this one."""
    assert torch.get_num_threads() == threads

    def step() -> None:
        torch.ones(mib * MIB, dtype=torch.uint8)

    return step


def is_killed() -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_peak_is_of_the_step_alone() -> None:
    """The parent holds more than the step does, and torch besides."""
    torch.set_num_threads(1)
    mine = torch.ones(300 * MIB, dtype=torch.uint8)
    peak = peak_memory(holds, 100, 1)
    assert peak is not None
    assert 100 <= peak / MIB < 150
    assert mine[-1] == 1


def test_a_killed_process_is_told() -> None:
    with pytest.raises(BrokenProcessPool):
        peak_memory(is_killed)


def test_devices_that_do_not_tell() -> None:
    assert peak_memory(holds, 1, 1, device=torch.device("mps")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_peak_on_a_gpu() -> None:
    def make_step() -> Callable[[], None]:
        kept = torch.ones(100 * MIB, dtype=torch.uint8, device="cuda")
        return lambda: kept.clone()[0].item()

    mine = torch.ones(300 * MIB, dtype=torch.uint8, device="cuda")
    assert peak_memory(make_step, device=torch.device("cuda")) == pytest.approx(200 * MIB, rel=0.01)
    assert mine[-1] == 1
