"""What glibc does with memory that is let go. Other systems' allocators are left as they are.

By itself it decides by the history of the process: one model pays for thousands of page faults a pass, and another, or
the same on another day, for none. What is to be compared must meet one rule.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's numbers of the settings; to set the first ends its own choice of both. More than 32 MiB it does not take
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_SMALL_BYTES, _LARGE_BYTES, _NEVER = 128 * 1024, 32 << 20, 1 << 30


def give_back_at_once() -> None:
    """To the system, as far as it is larger than 128 KiB: the process then holds what is in use."""
    _set(_M_MMAP_THRESHOLD, _SMALL_BYTES)


def keep() -> None:
    """For the next tensor that fits, as allocators made for many threads do; tensors of 32 MiB and more go back."""
    _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    _set(_M_TRIM_THRESHOLD, _NEVER)


def _set(setting: int, value: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every libc has it
        if mallopt is not None:
            mallopt(setting, value)
