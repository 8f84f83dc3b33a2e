"""The folder of a run: its configuration, when it has ended, and what of it may be overwritten."""

from __future__ import annotations

import logging
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from locatvit.errors import LocAtError
from locatvit.results import CONFIG_FILE, RESULT_FILE, Result, read_result, write_result
from locatvit.storage import write_text
from locatvit.training.checkpoint import Resume
from locatvit.training.loop import FitReport

# What may differ between the start and the resumption of a run: it does not touch the weights.
_FREE = frozenset({"run_dir", "root", "label", "max_bad_images", "num_workers", "evaluate_every"})

_log = logging.getLogger(__name__)


class RunFolder:
    """Where one run leaves its files.

    Args:
        path: the folder; made where missing.
        config: the run's configuration, a dataclass.
        weights_file: name of the file with the weights that the run is for.
        is_writer: whether this process is the one that writes, of those that train together.
    """

    def __init__(self, path: Path, config: Any, weights_file: str, *, is_writer: bool) -> None:
        self.path, self.config, self.weights = Path(path), plain_data(config), Path(path) / weights_file
        self.name = self.path.resolve().name
        self._is_writer = is_writer

    def ended(self, resume: Resume, **model: Any) -> Result | None:
        """The result of a run that has ended under this very configuration, to be given without any work.

        Args:
            resume: only ``"auto"`` asks for it.
            model: what the result's ``model`` must hold besides.
        """
        if resume != "auto" or not self.weights.is_file() or not (self.path / RESULT_FILE).is_file():
            return None
        result, config = read_result(self.path), read_config(self.path)
        if config != self.config or any(result.model.get(key) != value for key, value in model.items()):
            return None
        _log.warning("%s has ended already: its result stands (--resume never trains it anew)", self.path)
        return result

    def begin(self, updates_done: int) -> None:
        """Write the configuration; a run from the start removes the result and weights of an earlier one."""
        if not self._is_writer:
            return
        if updates_done == 0:
            for stale in (self.path / RESULT_FILE, self.weights):
                stale.unlink(missing_ok=True)
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(self.config, sort_keys=False))

    def conclude(self, result: Result, report: FitReport) -> Result:
        """Write the result and return it, stamped as it was where nothing was trained now."""
        if report.resumed_from == report.updates and (self.path / RESULT_FILE).is_file():
            result = replace(result, environment=read_result(self.path).environment)
        if self._is_writer:
            write_result(self.path, result)
        return result


def plain_data(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain_data(asdict(value))
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fingerprint(**parts: Any) -> dict[str, Any]:
    """What a checkpoint must agree in to be resumed, flat; places, names for tables and workers are free."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                if key not in _FREE:
                    add(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    add("", plain_data(parts))
    return flat


def read_config(run_dir: Path) -> dict[str, Any]:
    """A run's configuration as plain data.

    Raises:
        LocAtError: no such file, or not one of ours.
    """
    path = Path(run_dir) / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LocAtError(f"{run_dir} is no run: it has no {CONFIG_FILE}; give the folder of a run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LocAtError(f"{path} cannot be read ({' '.join(str(error).split())}); restore the file") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise LocAtError(f"{path} has no model; give the folder of a run that locatvit wrote")
    return config
