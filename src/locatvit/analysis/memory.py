"""The most memory that a step holds at a time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from locatvit.analysis import allocator
from locatvit.analysis.timing import Step

# The second may need more than the first: what the first leaves behind is still there.
_STEPS = 2


def peak_memory(make_step: Callable[..., Step], *arguments: Any, device: torch.device | None = None) -> int | None:
    """Bytes at the peak of making a step (its model, its images) and running it twice, above those before.

    On a CPU in a process of its own, started for it: what a process has once taken from the system, it keeps.
    There the peak is of the whole process above what it held when its libraries were loaded. On Linux tensors go back
    to the system as soon as they are let go: what its allocator would keep differs by tens of MiB from run to run.

    Args:
        make_step: builds what it needs and returns the step. A function of a module: the other process imports it.
        arguments: its arguments; for a CPU they are pickled.
        device: None for a CPU.

    Returns:
        None on devices that do not tell.

    Raises:
        BrokenProcessPool: the other process was killed; mostly the system ran out of memory.
    """
    if device is not None and device.type in ("cuda", "xpu"):
        return _peak_on_accelerator(make_step, arguments, device)
    if device is not None and device.type != "cpu":
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_this_process, make_step, arguments, torch.get_num_threads()).result()


def _peak_of_this_process(make_step: Callable[..., Step], arguments: tuple[Any, ...], threads: int) -> int | None:
    torch.set_num_threads(threads)
    allocator.give_back_at_once()
    before = _process_peak()
    _run(make_step, arguments)
    after = _process_peak()
    return None if before is None or after is None else after - before


def _peak_on_accelerator(make_step: Callable[..., Step], arguments: tuple[Any, ...], device: torch.device) -> int:
    gc.collect()
    torch.accelerator.synchronize(device)
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    _run(make_step, arguments)
    torch.accelerator.synchronize(device)
    return torch.accelerator.max_memory_allocated(device) - before


def _run(make_step: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    step = make_step(*arguments)
    for _ in range(_STEPS):
        step()


def _process_peak() -> int | None:
    """The most bytes that this process has held so far; None on systems that do not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would count what the parent held, too
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
