"""Weights to and from files, in the authors' key layout."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import re
import ssl
import struct
import urllib.error
import urllib.request
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.layers import GAug
from locatvit.storage import write_bytes

_HUB = "hf-hub:"
_HUB_TIMEOUT = 5  # seconds
WEIGHTS_FILE = "model.safetensors"
"""Of a folder, or of a repository on the hub."""
# Where training programs put the weights in a pickle, e.g. timm's; the averaged ones first.
_STATE_DICT_KEYS = ("state_dict_ema", "state_dict", "model_ema", "model", "module")
_METADATA_KEY = "locatvit"
# What add_locat adds; the last two are Jumbo's, and of start="identity".
_OF_LOCAT = re.compile(r"\.gaug\.|^norm_patches\.|(^|\.)(refinement|prr)\.gate$")
# what torch raises on broken bytes, by experience: it runs them as a pickle until something does not hold
_BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """What weights do not tell themselves.

    Attributes:
        config: LocAt's settings, without the backend; None for a plain model.
        trained_grid: (height, width) that the variance is scaled to; None without GAug.
    """

    config: dict[str, Any] | None
    trained_grid: list[int] | None


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write the weights to ``path`` atomically: safetensors, or for ``.pth`` and ``.pt`` what timm reads.

    A safetensors file also carries LocAt's configuration and the trained grid, which give the weights their
    meaning. A tensor that the model has under several names (Jumbo's shared MLP) is written once: in safetensors
    under its shortest name, the one of the module that owns it, for all names to be filled from when it is loaded;
    in a pickle under all of them, which there refer to one tensor.

    Raises:
        LocAtError: another ending, or the file cannot be written; what was there before stands.
    """
    path = Path(path)
    own = model.state_dict()
    once = {names[0]: own[names[0]].detach().cpu().contiguous() for names in tied_names(own)}
    if path.suffix == ".safetensors":
        metadata = {_METADATA_KEY: json.dumps(asdict(_meaning(model))), "format": "pt"}
        write_bytes(path, _in_order(save(once, metadata=metadata)))
    elif path.suffix in (".pth", ".pt"):
        owner = {name: names[0] for names in tied_names(own) for name in names}
        buffer = io.BytesIO()
        torch.save({"state_dict": {name: once[owner[name]] for name in own}}, buffer)
        write_bytes(path, buffer.getvalue())
    else:
        raise LocAtError(f"checkpoint {path} ends in {path.suffix!r}; use .safetensors, or .pth for timm's scripts")
    return path


def tied_names(state: dict[str, Tensor]) -> list[tuple[str, ...]]:
    """The names of each tensor of a state dict, the shortest path first; most have one name, tied ones several."""
    tensors: dict[object, list[str]] = {}
    for name, value in state.items():
        # without memory (empty, or on the meta device) nothing can be shared
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride()) if value.data_ptr() else name
        tensors.setdefault(place, []).append(name)
    return [tuple(sorted(names, key=lambda name: name.count("."))) for names in tensors.values()]


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted, so that equal weights give equal bytes.

    The library writes them in an order that changes from call to call. The header is JSON behind its length
    in 8 bytes, filled with blanks to a multiple of 8.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_checkpoint(model: nn.Module, source: str | Path, *, cache_dir: str | None = None) -> nn.Module:
    """Load weights strictly into ``model``; in place, returns the model.

    Args:
        model: with LocAt or without, as the checkpoint is.
        source: see ``Weights.read``.
        cache_dir: of the hub client.

    Raises:
        LocAtError: see ``Weights``. The model is then as it was.
    """
    return Weights.read(source, cache_dir=cache_dir).load_into(model)


@dataclass(frozen=True)
class Weights:
    """The weights of a file, before they are in a model.

    Attributes:
        path: of the file.
        state: names to tensors, on the CPU.
        meaning: None where the file does not tell, as the authors' and timm's do not.
    """

    path: Path
    state: dict[str, Tensor]
    meaning: Meaning | None

    @classmethod
    def read(cls, source: str | Path, *, cache_dir: str | None = None) -> Weights:
        """Read a file; a pickle may hold tensors and plain data alone, nothing in it is run.

        Args:
            source: a ``.safetensors`` file, a pickle (``.pth``, ``.pt``, ``.tar``, ``.bin``), a folder with
                ``model.safetensors``, or ``"hf-hub:owner/name"``.
            cache_dir: of the hub client.

        Raises:
            LocAtError: no such file; truncated, foreign or unsafe content.
        """
        path = fetch(source, WEIGHTS_FILE, cache_dir=cache_dir)
        state, meaning = _read_safetensors(path) if path.suffix == ".safetensors" else (_unpickle(path), None)
        return cls(path, {key.removeprefix("module."): value for key, value in state.items()}, meaning)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load strictly, in place; returns the model.

        Of the names that are one tensor in the model, the file may have any: one, as ours, or all, as the authors'.

        Raises:
            LocAtError: keys, shapes or meaning differ (named, with the remedy where the cause is a common
                one). The model is then as it was.
        """
        own = model.state_dict()
        state = _filled_from_ties(own, self.state, self.path)
        _check_kind(model, self.state, self.path)
        if self.meaning is not None:  # before keys and shapes: it tells why they would differ
            _check_meaning(_meaning(model), self.meaning, self.path)
        _check_keys(model, state, self.path)
        _check_shapes(model, state, self.path)
        model.load_state_dict(state, strict=True)
        return model


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of all weights, each once, names and types included."""
    digest, state = hashlib.sha256(), model.state_dict()
    owners = {names[0] for names in tied_names(state)}
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        if name in owners:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fetch(source: str | Path, name: str, *, cache_dir: str | None = None) -> Path:
    """The file ``name`` of a folder or of a repository on the hub; ``source`` itself where it is a file.

    Raises:
        LocAtError: there is no such file, or it cannot be fetched.
    """
    if str(source).startswith(_HUB):
        repository = str(source).removeprefix(_HUB)
        try:
            # asked first: the client itself tries again for half a minute
            return Path(hf_hub_download(repository, name, cache_dir=cache_dir, local_files_only=not hub_answers()))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            offline = isinstance(error, LocalEntryNotFoundError)
            reason = "it does not answer, and the cache lacks the file" if offline else _first_line(error)
            raise LocAtError(
                f"cannot fetch {name} of {repository!r} from the hub ({reason}); check "
                "the name and the connection, or give the path of a downloaded file"
            ) from error
    path = Path(source)
    if path.is_dir():
        path = path / name
    if not path.is_file():
        what = "checkpoint" if name == WEIGHTS_FILE else name
        raise LocAtError(f"no {what} at {path}; give a file, a folder with {name}, or hf-hub:owner/name")
    return path


def hub_answers() -> bool:
    """Whether the hub can be reached now; what it answers, and whom it trusts, is the client's affair."""
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_TIMEOUT)
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Meaning | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        meaning = Meaning(**json.loads(metadata[_METADATA_KEY])) if _METADATA_KEY in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _unreadable(path, _first_line(error)) from error
    return state, meaning


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        # timm's training script stores its arguments beside the weights: a plain container
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _unreadable(path, "no pickle of tensors") from error
        raise LocAtError(
            f"{path} holds {refused[1]}, which is neither a tensor nor plain data and may be harmful, so it "
            "was not loaded; save the model's state_dict alone, best as .safetensors"
        ) from error
    except _BROKEN as error:
        raise _unreadable(path, _first_line(error)) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LocAtError(f"{path} holds no weights but {_kind(content)}; save the model's state_dict")
    return content


def _kind(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return f"a dictionary with {_some([str(key) for key in content])}"


def _unreadable(path: Path, reason: str) -> LocAtError:
    return LocAtError(
        f"{path} ({path.stat().st_size} bytes) is truncated or no file of weights ({reason}); copy it again, "
        "or take another checkpoint"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _filled_from_ties(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The file's state with every name of a tensor that it has under one of its names in the model."""
    filled = dict(state)
    for names in tied_names(own):
        present = [name for name in names if name in state]
        for name in present[1:]:
            if not state[name].equal(state[present[0]]):
                raise LocAtError(
                    f"{path} does not fit: {present[0]} and {name} are one tensor in the model and differ in the "
                    "file; give a file of a model that shares it"
                )
        if present:
            filled.update(dict.fromkeys(names, state[present[0]]))
    return filled


def _check_kind(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    if not own.keys() & state.keys():
        raise LocAtError(
            f"{path} is a foreign checkpoint: none of its {len(state)} keys ({_some(list(state))}) is one of "
            f"{type(model).__name__}'s ({_some(list(own))}); give one of this kind of model"
        )


def _check_keys(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """One message for all that differs, with the cause where it is a common one."""
    own = model.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or unexpected:
        raise LocAtError(
            f"{path} does not fit: missing {_some(missing)}; unexpected {_some(unexpected)}. "
            + _remedy(missing, unexpected)
        )


def _check_shapes(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    wrong = [key for key in own if own[key].shape != state[key].shape]
    if not wrong:
        return
    key = wrong[0]
    remedy = (
        f"its classes are {state[key].shape[0]} and the model's {own[key].shape[0]}: create the model with "
        f"num_classes={state[key].shape[0]}, or take a checkpoint with {own[key].shape[0]} classes"
        if all(name.startswith("head") for name in wrong)
        else "create the model with the sizes that the checkpoint was trained with"
    )
    raise LocAtError(
        f"{path} does not fit: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in "
        f"the model ({len(wrong)} such tensor{'s' * (len(wrong) != 1)}); {remedy}"
    )


def _some(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _remedy(missing: list[str], unexpected: list[str]) -> str:
    if missing and not unexpected and all(_OF_LOCAT.search(key) for key in missing):
        return "The file is of a plain model: load it first, then add_locat"
    if unexpected and not missing and all(_OF_LOCAT.search(key) for key in unexpected):
        return "The file is of a model with LocAt: call add_locat first"
    return "Create the model with the settings that the checkpoint was trained with"


def _meaning(model: nn.Module) -> Meaning:
    config = getattr(model, "locat_config", None)
    grids = [list(module.trained_grid) for module in model.modules() if isinstance(module, GAug)]
    return Meaning(None if config is None else _settings(config), grids[0] if grids else None)


def _settings(config: LocAtConfig) -> dict[str, Any]:
    """What gives the weights their meaning, as the file has it: tuples are lists."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del settings["backend"]
    return settings


def _check_meaning(own: Meaning, saved: Meaning, path: Path) -> None:
    if (own.config is None) != (saved.config is None):
        with_locat, remedy = (
            ("without LocAt and the model has it", "load it first, then add_locat")
            if saved.config is None
            else ("with LocAt and the model has none", "call add_locat first")
        )
        raise LocAtError(f"{path} was saved {with_locat}; {remedy}")
    # a file of an older version lacks fields that had one value then, the default of now
    for key, value in {**_settings(LocAtConfig()), **saved.config}.items() if saved.config is not None else ():
        ours = (own.config or {}).get(key)
        if ours != value:
            raise LocAtError(
                f"{path} was saved with LocAt's {key}={value!r} and the model has {ours!r}; create it with "
                f"LocAtConfig({key}={value!r})"
            )
    if own.trained_grid != saved.trained_grid:
        raise LocAtError(
            f"{path} was trained on grid {saved.trained_grid} and the model is built for {own.trained_grid}: "
            "its variances would mean something else; create the model with the trained img_size and "
            "dynamic_img_size=True"
        )
