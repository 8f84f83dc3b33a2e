"""Checkpoints of a run: whole or not at all, tensors and plain data only, the last good one always there."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from locatvit.errors import LocAtError
from locatvit.storage import atomic_write

Resume = Literal["auto", "never"] | str | Path
"""``"auto"``: go on from the newest good checkpoint of the run's folder, or begin; ``"never"``: begin, and
remove what is there; a path: go on from that file."""

CHECKPOINT_FOLDER = "checkpoints"
BEST_FILE = "best.pt"
_KIND = "locatvit training checkpoint"
_WEIGHTS_KIND = "locatvit weights"
_STATE_KEYS = ("model", "optimizer", "scheduler", "scaler", "ema", "processes", "progress", "fingerprint")

_REMEDY = "give an undamaged checkpoint that locatvit wrote, or resume='auto' for the newest good one of the run"

_MOST_DIFFERENCES = 4

_log = logging.getLogger(__name__)


def checkpoint_path(run_dir: Path, update: int) -> Path:
    """Where the checkpoint after ``update`` updates lies."""
    return Path(run_dir) / CHECKPOINT_FOLDER / f"update-{update:08d}.pt"


def best_path(run_dir: Path) -> Path:
    """Where the weights of the best evaluation lie; read them with ``read_weights``."""
    return Path(run_dir) / CHECKPOINT_FOLDER / BEST_FILE


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run to resume from, oldest first."""
    return sorted((Path(run_dir) / CHECKPOINT_FOLDER).glob("update-*.pt"))


def write_checkpoint(run_dir: Path, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write the checkpoint of ``state["progress"]["update"]``, and remove all but the ``keep`` newest.

    Raises:
        LocAtError: full disk, or a folder that cannot be written; what was there before stands.
    """
    path = checkpoint_path(run_dir, state["progress"]["update"])
    _save(path, {"kind": _KIND, **state})
    for old in [other for other in list_checkpoints(run_dir) if other <= path][:-keep]:
        old.unlink()
    return path


def write_best(run_dir: Path, model: nn.Module, best: dict[str, Any]) -> Path:
    """Write the weights of the best evaluation, as they were measured, with its metric, value and update.

    Raises:
        LocAtError: full disk, or a folder that cannot be written; the best so far stands.
    """
    path = best_path(run_dir)
    _save(path, {"kind": _WEIGHTS_KIND, "model": model.state_dict(), "best": best})
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's state dict in a checkpoint of a run or in its ``best.pt``.

    Raises:
        LocAtError: no such file, damaged, or not ours.
    """
    weights: dict[str, torch.Tensor] = _load(Path(path), (_KIND, _WEIGHTS_KIND))["model"]
    return weights


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        LocAtError: no such file, damaged, or not ours; nothing in the file is executed.
    """
    state = _load(Path(path), (_KIND,))
    missing = [key for key in _STATE_KEYS if key not in state]
    if missing:
        raise LocAtError(f"{path} lacks {', '.join(missing)}; give a checkpoint written by this version of locatvit")
    return state


def find_checkpoint(run_dir: Path, resume: Resume) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, or None to begin.

    ``"auto"`` takes the newest that can be read and logs a warning for each that it must pass over.

    Raises:
        LocAtError: the file asked for is missing or damaged; or ``"auto"`` found checkpoints, all of them
            damaged.
    """
    if resume == "never":
        return None
    if resume != "auto":
        return Path(resume), read_checkpoint(Path(resume))
    failures: list[LocAtError] = []
    for path in reversed(list_checkpoints(run_dir)):
        try:
            found = path, read_checkpoint(path)
        except LocAtError as error:
            failures.append(error)
            continue
        for failure in failures:
            _log.warning("%s; going on from the one before it, %s", failure, path)
        return found
    if failures:
        raise LocAtError(
            f"no checkpoint in {Path(run_dir) / CHECKPOINT_FOLDER} can be read ({failures[0]}); "
            "resume='never' removes them and begins again"
        )
    return None


def check_fingerprint(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Refuse to go on with another configuration: its weights would be neither run's.

    Args:
        saved: the fingerprint in the checkpoint.
        current: this run's, as ``plain`` data.
        path: of the checkpoint, for the message.

    Raises:
        LocAtError: names the fields that differ, with both values; the first four of them.
    """
    differing = [
        f"{key} (checkpoint {saved.get(key, 'absent')!r}, now {current.get(key, 'absent')!r})"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key, _ABSENT) != current.get(key, _ABSENT)
    ]
    if differing:
        shown = ", ".join(differing[:_MOST_DIFFERENCES])
        if len(differing) > _MOST_DIFFERENCES:
            shown += f" and {len(differing) - _MOST_DIFFERENCES} more"
        raise LocAtError(
            f"cannot resume from {path}: the configuration differs in {shown}; restore it, "
            "choose another run folder, or begin again with resume='never', which removes these checkpoints"
        )


def plain(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint as JSON would give it back: tuples are lists, paths are strings."""
    result: dict[str, Any] = json.loads(json.dumps(fingerprint, default=str, sort_keys=True))
    return result


def clear_run(run_dir: Path, *, everything: bool) -> None:
    """Remove what a killed run left half-written, and with ``everything`` its checkpoints as well."""
    folder = Path(run_dir) / CHECKPOINT_FOLDER
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    checkpoints = [*list_checkpoints(run_dir), *folder.glob(BEST_FILE)] if everything else []
    if checkpoints:
        _log.warning("beginning again: removing %d checkpoints from %s", len(checkpoints), folder)
    for path in checkpoints:
        path.unlink()


_ABSENT = object()


def _save(path: Path, content: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # torch wraps the file's own error ("File too large", "No space left on device") in one of its own
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise (cause or error) from error

    atomic_write(path, write)


def one_line(error: BaseException) -> str:
    """The text of a library's error, for use inside one of ours."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _load(path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise LocAtError(f"no checkpoint at {path}; {_REMEDY}")
    if not zipfile.is_zipfile(path):
        raise LocAtError(
            f"{path} ({path.stat().st_size} bytes) is cut short or no torch checkpoint: its table of "
            f"contents, at the end, is missing; {_REMEDY}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LocAtError(
            f"{path} holds more than tensors and plain data, so it is not one of ours and was not opened; {_REMEDY}"
        ) from error
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise LocAtError(f"{path} cannot be read ({one_line(error)}); {_REMEDY}") from error
    if damaged:
        raise LocAtError(f"{path} is damaged: the bytes of {damaged} do not match their checksum; {_REMEDY}")
    if not isinstance(content, dict) or content.get("kind") not in kinds:
        shown = list(content)[:4] if isinstance(content, dict) else type(content).__name__
        raise LocAtError(f"{path} is a torch file but not a {kinds[0]} (it holds {shown}); {_REMEDY}")
    return content
