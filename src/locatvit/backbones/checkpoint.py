"""Weights to and from files, in the authors' key layout."""

from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.layers import GAug
from locatvit.storage import atomic_write

_HUB = "hf-hub:"
_WEIGHTS_FILE = "model.safetensors"
# Where training programs put the weights in a pickle, e.g. timm's; the averaged ones first.
_STATE_DICT_KEYS = ("state_dict_ema", "state_dict", "model_ema", "model", "module")
_METADATA_KEY = "locatvit"


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write the weights to ``path`` atomically: safetensors, or for ``.pth`` and ``.pt`` what timm's tools read.

    A safetensors file also carries LocAt's configuration and the trained grid, which give the weights their meaning.
    """
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        metadata = {_METADATA_KEY: json.dumps(_meaning(model)), "format": "pt"}
        atomic_write(path, lambda temporary: save_file(state, temporary, metadata=metadata))
    elif path.suffix in (".pth", ".pt"):
        atomic_write(path, lambda temporary: torch.save({"state_dict": state}, temporary))
    else:
        raise LocAtError(
            f"checkpoint {path} ends in {path.suffix!r}; use .safetensors, or .pth for timm's scripts"
        )
    return path


def load_checkpoint(model: nn.Module, source: str | Path, *, cache_dir: str | None = None) -> nn.Module:
    """Load weights strictly into ``model``; in place, returns the model.

    Args:
        model: with LocAt or without, as the checkpoint is.
        source: a ``.safetensors`` file, a pickle of weights (``.pth``, ``.pt``, ``.tar``, ``.bin``; loaded with
            ``weights_only=True``), a folder with ``model.safetensors``, or ``"hf-hub:owner/name"``.
        cache_dir: of the hub client.

    Raises:
        LocAtError: no such file; truncated, foreign or unsafe content; keys or shapes that differ (named).
            The model is then as it was.
    """
    path = _locate(source, cache_dir)
    state, meaning = _read(path)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    _check_keys(model, state, path)
    if meaning is not None:
        _check_meaning(_meaning(model), meaning, path)
    model.load_state_dict(state, strict=True)
    return model


def _locate(source: str | Path, cache_dir: str | None) -> Path:
    if str(source).startswith(_HUB):
        repository = str(source).removeprefix(_HUB)
        try:
            return Path(hf_hub_download(repository, _WEIGHTS_FILE, cache_dir=cache_dir))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise LocAtError(
                f"cannot fetch {_WEIGHTS_FILE} of {repository!r} from the hub ({reason}); check the name and the "
                "connection, or give the path of a downloaded file"
            ) from error
    path = Path(source)
    if path.is_dir():
        path = path / _WEIGHTS_FILE
    if not path.is_file():
        raise LocAtError(
            f"no checkpoint at {path}; give a file, a folder with {_WEIGHTS_FILE}, or hf-hub:owner/name"
        )
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError as error:
            raise _unreadable(path, error) from error
        return state, json.loads(metadata[_METADATA_KEY]) if _METADATA_KEY in metadata else None
    try:
        # timm's training script stores its arguments beside the weights: a plain container
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LocAtError(f"{path} holds no weights but {type(content).__name__}; save the model's state_dict")
    return content, None


def _unreadable(path: Path, error: Exception) -> LocAtError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return LocAtError(
        f"{path} ({path.stat().st_size} bytes) is truncated or no file of weights ({reason}); copy it again, "
        "or take another checkpoint. Pickles may hold tensors alone"
    )


def _check_keys(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """One message for all that differs, with the cause where it is a common one."""
    own = model.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if len(missing) == len(own):
        raise LocAtError(
            f"{path} is a foreign checkpoint: none of its {len(state)} keys ({_some(unexpected)}) is one of "
            f"{type(model).__name__}'s ({_some(missing)})"
        )
    if missing or unexpected:
        raise LocAtError(
            f"{path} does not fit: missing {_some(missing)}; unexpected {_some(unexpected)}{_hint(missing, unexpected)}"
        )
    wrong = [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        key = wrong[0]
        remedy = (
            f"create the model with num_classes={state[key].shape[0]}"
            if key.startswith("head.")
            else "create the model with the sizes that the checkpoint was trained with"
        )
        raise LocAtError(
            f"{path} does not fit: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in "
            f"the model ({len(wrong)} such tensors); {remedy}"
        )


def _some(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _hint(missing: list[str], unexpected: list[str]) -> str:
    if missing and not unexpected and all(".gaug." in key for key in missing):
        return ". The file is of a plain model: load it first, then add_locat"
    if unexpected and not missing and all(".gaug." in key for key in unexpected):
        return ". The file is of a model with LocAt: call add_locat first"
    return ""


def _meaning(model: nn.Module) -> dict[str, Any]:
    """What the weights do not tell: LocAt's configuration and the grid that the variance is scaled to."""
    config = getattr(model, "locat_config", None)
    grids = [list(module.trained_grid) for module in model.modules() if isinstance(module, GAug)]
    meaning = {
        "config": None if config is None else asdict(config),
        "trained_grid": grids[0] if grids else None,
    }
    if meaning["config"]:
        del meaning["config"]["backend"]
    return json.loads(json.dumps(meaning))


def _check_meaning(own: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    if own["trained_grid"] != saved["trained_grid"]:
        raise LocAtError(
            f"{path} was trained on grid {saved['trained_grid']} and the model is built for {own['trained_grid']}: its "
            "variances would mean something else; create the model with the trained img_size and dynamic_img_size=True"
        )
    own_config, saved_config = own["config"] or {}, saved["config"] or {}
    for key in saved_config:
        if own_config.get(key) != saved_config[key]:
            raise LocAtError(
                f"{path} was saved with LocAt's {key}={saved_config[key]!r} and the model has {own_config.get(key)!r}; "
                f"create it with LocAtConfig({key}={saved_config[key]!r})"
            )
