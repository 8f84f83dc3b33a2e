"""A model as a folder, as timm's hub keeps it: ``config.json``, ``model.safetensors``, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from locatvit.backbones import transformers_files
from locatvit.backbones.add import add_locat
from locatvit.backbones.checkpoint import WEIGHTS_FILE, fetch, load_checkpoint, save_checkpoint
from locatvit.backbones.registry import MODELS, create_model
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.results import Result, read_result
from locatvit.storage import write_json, write_text

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_OF_THE_WEIGHTS = (
    "input_size", "interpolation", "crop_pct", "mean", "std", "first_conv", "classifier", "license"
)  # fmt: skip
# keywords of our names that the whole configuration stands for
_SWITCHES = ("locat", "gaug", "prr", "no_pos_emb")


def save_pretrained(model: nn.Module, folder: str | Path, *, results: Sequence[Result | str | Path] = ()) -> Path:
    """Write a folder that ``load_pretrained`` reads, and ``timm.create_model("local-dir:FOLDER", pretrained=True)`` for
    our names while this package is imported.

    Args:
        model: made by ``create_model`` or timm's, with LocAt or without; or a transformers model, which its own
            ``save_pretrained`` writes, and this the card beside.
        folder: is made where it does not exist.
        results: measured with these weights, or the folders of the runs that measured them (with ``result.json``); the
            card shows them with protocol, data and versions.

    Raises:
        LocAtError: the model does not tell how it was made, or the folder cannot be written.
    """
    folder = Path(folder)
    measured = [each if isinstance(each, Result) else read_result(Path(each)) for each in results]
    if hasattr(model, "save_pretrained"):  # transformers'
        return _save_transformers(model, folder, measured)
    config = _describe(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, folder / WEIGHTS_FILE)
    write_text(folder / CARD_FILE, _card(config, measured))
    write_json(folder / CONFIG_FILE, config)  # last: what has one is whole
    return folder


def _save_transformers(model: Any, folder: Path, results: Sequence[Result]) -> Path:
    try:
        model.save_pretrained(folder)
    except OSError as error:
        raise LocAtError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    settings = getattr(model.config, "locat", None)
    config = {"architecture": type(model).__name__, "model_args": {}, "pretrained_cfg": {}}
    config |= {} if settings is None else {"locat": settings}
    write_text(folder / CARD_FILE, _card(config, results, library="transformers"))
    return folder


def load_pretrained(source: str | Path, *, cache_dir: str | None = None, **kwargs: Any) -> nn.Module:
    """The model of a folder, with LocAt as it was saved, and its weights.

    Args:
        source: a folder of ``save_pretrained``, timm's, or a transformers model's, or ``"hf-hub:owner/name"``.
        cache_dir: of the hub client.
        kwargs: go before those that the model was made with, e.g. ``dynamic_img_size=True``; of ``from_pretrained``
            for a transformers model.

    Raises:
        LocAtError: no such folder, one that is not whole or not a model's, or weights that do not fit.
    """
    path = fetch(source, CONFIG_FILE, cache_dir=cache_dir)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if "model_type" in config:  # transformers' word
            return transformers_files.load_pretrained(source, cache_dir=cache_dir, **kwargs)
        name, arguments = config["architecture"], {**config.get("model_args", {}), **kwargs}
        arguments.setdefault("num_classes", config.get("num_classes"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocAtError(f"{path} describes no timm model ({error!r}); write it with save_pretrained") from error
    model = create_model(name, **arguments)
    if config.get("locat") is not None:
        add_locat(model, LocAtConfig(**config["locat"]))
    return load_checkpoint(model, source, cache_dir=cache_dir)


def push_to_hub(
    model: nn.Module, repository: str, folder: str | Path, *, results: Sequence[Result | str | Path] = ()
) -> str:
    """``save_pretrained`` into ``folder``, then upload it; returns the address of the commit.

    Args:
        model: see ``save_pretrained``.
        repository: ``"owner/name"``; made where it does not exist. The client must be logged in.
        folder: where the files are written first.
        results: for the card.

    Raises:
        LocAtError: see ``save_pretrained``; or the hub refuses.
    """
    save_pretrained(model, folder, results=results)
    client = HfApi()
    try:
        client.create_repo(repository, exist_ok=True)
        return str(client.upload_folder(repo_id=repository, folder_path=str(folder)).commit_url)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LocAtError(
            f"cannot upload {folder} to {repository!r} ({reason}); check the name, the connection and `hf auth login`"
        ) from error


def _describe(model: Any) -> dict[str, Any]:
    """What timm reads, and LocAt's settings: as a keyword of our names, beside the keywords for other models."""
    told: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if not told.get("architecture"):
        raise LocAtError(
            f"this {type(model).__name__} does not tell its name, so nobody could make it again; create it by "
            "locatvit.create_model or timm.create_model"
        )
    arguments = {name: value for name, value in getattr(model, "_model_args", {}).items() if name not in _SWITCHES}
    arguments["num_classes"] = model.num_classes
    locat = None if getattr(model, "locat_config", None) is None else asdict(model.locat_config)
    is_ours = told["architecture"] in MODELS
    if is_ours and locat is not None:
        arguments["locat"] = locat
    config = {
        "architecture": told["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        **({} if is_ours or locat is None else {"locat": locat}),
        "pretrained_cfg": {name: told[name] for name in _OF_THE_WEIGHTS if told.get(name) is not None},
    }
    try:
        json.dumps(config)
    except TypeError as error:
        raise LocAtError(
            f"the model was made with keywords that a file cannot hold ({error}); use plain values"
        ) from error
    return config


def _card(config: Mapping[str, Any], results: Sequence[Result], library: str = "timm") -> str:
    locat = config.get("locat") or config["model_args"].get("locat")
    name = config["architecture"] + (" with LocAt" if "locat" in config else "")
    lines = [
        "---",
        f"library_name: {library}",
        f"license: {config['pretrained_cfg'].get('license', 'other')}",
        f"tags: [image-classification, image-feature-extraction, {library}, locatvit]",
        "---",
        f"# {name}",
        "",
        "```python",
        "import locatvit",
        'model = locatvit.load_pretrained("FOLDER_OR_hf-hub:OWNER/NAME")',
        "```",
        "",
        *([f"LocAt: `{json.dumps(locat)}`", ""] if locat else []),
    ]
    if results:
        lines += ["| protocol | data | metric | value | made with |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        versions = result.environment.get("versions", {})
        stamp = f"locatvit {versions.get('locatvit')}, torch {versions.get('torch')}, {result.environment.get('date')}"
        changed = ", ".join(f"{name}={value}" for name, value in result.changed.items())
        protocol = result.protocol + (f", changed: {changed}" if changed else "")
        for metric, value in result.metrics.items():
            lines.append(f"| {protocol} | {result.data.get('name')} | {metric} | {value:.4f} | {stamp} |")
    return "\n".join(lines) + "\n"
