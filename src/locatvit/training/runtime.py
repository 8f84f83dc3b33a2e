"""Seeds, device, precision, and the random states that a checkpoint carries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from locatvit.errors import LocAtError
from locatvit.training.config import Precision


def seed_everything(seed: int, process_index: int = 0) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices).

    Args:
        seed: of the run.
        process_index: added to the seed, so that processes draw different Mixup and stochastic depth.
    """
    random.seed(seed + process_index)
    np.random.seed((seed + process_index) % 2**32)
    torch.manual_seed(seed + process_index)


def make_accelerator(precision: Precision = "no", *, tf32: bool = True) -> Accelerator:
    """Accelerate's view of the device, the precision and the processes of this run.

    On a CPU deterministic algorithms are switched on: the same seed gives the same weights, bit for bit. On
    a GPU they stay off, as some operations (bilinear upsampling backwards) have none.

    Args:
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``, by autocast.
        tf32: let a GPU multiply float32 matrices in TF32, as the authors do.

    Raises:
        LocAtError: an unknown precision, or one that this device cannot compute in.
    """
    if precision not in get_args(Precision):
        raise LocAtError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    if AcceleratorState._shared_state:
        # Accelerate holds one precision a process; a process that trains several models may need several
        AcceleratorState._reset_state()
    try:
        # without cpu=True, processes on a machine without a GPU would not know of each other
        accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    except ValueError as error:
        raise LocAtError(f"precision is {precision!r}; this device cannot ({error}); use 'bf16' or 'no'") from error
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu and precision == "fp16":
        raise LocAtError("precision is 'fp16'; it needs a GPU, and none is here; use 'bf16' or 'no'")
    torch.use_deterministic_algorithms(on_cpu)
    # otherwise every torch.empty is filled with NaN first, which costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not on_cpu:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    return accelerator


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints, of those that train together."""
    return PartialState().is_main_process


def describe_device(device: torch.device | str | None = None) -> str:
    """The device in words, for results: ``"cpu, 2 threads"`` or the GPU's name.

    Args:
        device: None for the one that ``make_accelerator`` would take.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = torch.device(device or "cpu")
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'s' * (threads != 1)}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of all global generators as tensors and plain data, for ``torch.load(weights_only=True)``."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all global generators back to what ``rng_state`` saw."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    keys = legacy["keys"].numpy().astype(np.uint32)
    np.random.set_state((legacy["name"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"]))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """What happens inside draws from the generators, but leaves them as they were."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
