"""What a run leaves behind: one result, many metric rows. No torch: reports need none."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from locatvit.errors import LocAtError
from locatvit.storage import write_json, write_text

RESULT_FILE = "result.json"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
_STAMPED = ("locatvit", "torch", "torchvision", "timm", "accelerate", "torchmetrics", "numpy")


@dataclass(frozen=True)
class Result:
    """One measured outcome with all that made it.

    Attributes:
        task: ``"classification"``, ``"segmentation"`` or ``"hummingbird"``.
        protocol: the name of the procedure, e.g. ``"locat"`` for the paper's segmentation.
        model: name, keyword arguments, LocAt's configuration (None for a plain model), number of parameters.
        data: name, split, number of images and of classes.
        metrics: fractions in [0, 1] (``top1``, ``miou``, ``pixel_accuracy``, ``boundary_iou``; ``loss`` is in nats).
        per_class: class name to fraction; None for a class that the data never shows.
        config: the resolved configuration of the run.
        environment: versions, commit, device, date (see ``environment``).
        seconds: wall time of the run.
        changed: the settings that are not those of the frozen protocol, by name; empty for the protocol as published.
            Only then does the result compare with others of that name.
    """

    task: str
    protocol: str
    model: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float]
    per_class: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    changed: dict[str, Any] = field(default_factory=dict)


def environment(device: str) -> dict[str, Any]:
    """Versions, commit, device and date, for stamping a result.

    Args:
        device: the device in words, e.g. ``"cpu, 2 threads"``.
    """
    versions: dict[str, str | None] = {}
    for name in _STAMPED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "commit": _commit(),
        "device": device,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """The source tree's commit, with ``+`` behind it where files differ; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def write_result(folder: Path, result: Result) -> Path:
    """Write ``folder/result.json`` atomically and return its path."""
    path = Path(folder) / RESULT_FILE
    write_json(path, asdict(result))
    return path


def read_result(path: Path) -> Result:
    """Read a result file, or the one in a run's folder.

    Raises:
        LocAtError: no such file, or not one of ours.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULT_FILE
    try:
        return Result(**_with_changes(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise LocAtError(f"no {RESULT_FILE} at {path}; has the run ended? Start it again with --resume auto") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise LocAtError(f"{path} is no result file of locatvit ({error}); give a run's folder") from error


def _with_changes(content: Any) -> Any:
    """Files of segmentation from before protocols were frozen do not tell whether they changed one."""
    if isinstance(content, dict) and content.get("task") == "segmentation" and "changed" not in content:
        return {**content, "changed": {"settings": "not recorded"}}
    return content


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Append one row, a flat dictionary, to ``folder/metrics.jsonl``."""
    with (Path(folder) / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All rows of ``folder/metrics.jsonl``, oldest first; empty where there is no file.

    A last line that a kill cut short is left out.
    """
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def truncate_metrics(folder: Path, last_update: int) -> None:
    """Drop the rows of updates after ``last_update``, and a line cut short; a resumed run writes them."""
    rows = [row for row in read_metrics(folder) if row.get("update", 0) <= last_update]
    write_text(Path(folder) / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
