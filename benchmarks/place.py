"""What the benchmarks share: where they run, and where what they find goes."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from locatvit.errors import LocAtError
from locatvit.results import environment
from locatvit.training.runtime import describe_device

RESULTS = Path(__file__).parent / "results"


def find_device(name: str | None) -> torch.device:
    """By name; None for a GPU if there is one.

    Raises:
        LocAtError: it is not here.
    """
    if name is None:
        present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if present is None else torch.device(present)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LocAtError(f"device is {name!r}, which is not here: {str(error).splitlines()[0]}") from error
    return device


def stamp(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, commit, device, processor, precision and date."""
    found = environment(describe_device(device))
    for name in ("triton", "pytorch-triton"):
        try:
            found["versions"]["triton"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["versions"].setdefault("triton", None)
    return found | {"processor": _processor(), "precision": precision}


def slug(stamped: dict[str, Any]) -> str:
    """The end of a file's name: device and date."""
    return f"{'-'.join(stamped['device'].lower().replace(',', '').split())}_{stamped['date']}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
