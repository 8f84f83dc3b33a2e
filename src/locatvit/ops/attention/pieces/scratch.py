"""Memory that one call on a CPU after the other writes, and the views of it: one of each a thread of the caller.

Fresh memory of some MiB costs more in page faults than the bias costs in arithmetic, and a view costs as much as the
arithmetic on a few hundred patches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

_MOST_VIEWS = 256
_Views = TypeVar("_Views")


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.rooms: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[Hashable, Any] = {}


_scratch = _Scratch()


def room(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory, the same for each call of this name."""
    rooms = _scratch.rooms
    if (name, dtype) not in rooms or rooms[name, dtype].numel() < size:
        _scratch.views.clear()  # they would keep the smaller memory alive
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            rooms[name, dtype] = torch.empty(size, dtype=dtype)
    return rooms[name, dtype][:size]


def views(key: Hashable, make: Callable[[], _Views]) -> _Views:
    """What ``make`` gives, of ``room`` alone; kept for the next call with this key."""
    found: _Views | None = _scratch.views.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = make()
        if len(_scratch.views) >= _MOST_VIEWS:
            _scratch.views.clear()
        _scratch.views[key] = found
    return found
