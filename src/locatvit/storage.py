"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from locatvit.errors import LocAtError


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then rename it to ``path``.

    A reader sees the old file or the new one, never half of either, also after a crash.

    Raises:
        LocAtError: the disk is full or the folder is not writable; ``path`` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise LocAtError(
            f"cannot write {path}: {error.strerror or error}; the file that was there before stands. "
            "Free some space or choose another folder, then start again"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically as indented JSON (no NaN: it is no JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
