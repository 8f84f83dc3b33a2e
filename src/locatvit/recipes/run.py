"""What all runs share: models and loaders by configuration, the run folder, the result's stamp."""

from __future__ import annotations

import os
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from locatvit.backbones.add import add_locat
from locatvit.backbones.checkpoint import load_checkpoint
from locatvit.backbones.registry import MODELS, create_model
from locatvit.config import LocAtConfig
from locatvit.data import Task, open_dataset
from locatvit.data.loader import Loader, make_loader
from locatvit.errors import LocAtError
from locatvit.recipes.config import DataConfig, ModelConfig
from locatvit.results import CONFIG_FILE, read_result
from locatvit.storage import write_text

WEIGHTS_FILE = "model.safetensors"


def build_model(config: ModelConfig, num_classes: int | None = None) -> nn.Module:
    """The model of a configuration, with its weights loaded."""
    kwargs = dict(config.kwargs)
    if num_classes is not None:
        given = kwargs.setdefault("num_classes", num_classes)
        if given != num_classes:
            raise LocAtError(
                f"model.kwargs says num_classes={given} but the data has {num_classes} classes; leave it out"
            )
    if config.name in MODELS:
        model = create_model(config.name, config.pretrained, locat=config.locat, **kwargs)
    else:
        model = create_model(config.name, config.pretrained, **kwargs)
        if config.locat is not None:
            add_locat(model, config.locat)
    if config.checkpoint is not None:
        load_checkpoint(model, config.checkpoint)
    return model


def build_loaders(
    data: DataConfig, task: Task, train_transform: Any, val_transform: Any, *, batch_size: int, val_batch_size: int,
    num_workers: int, seed: int,
) -> tuple[Loader, Loader]:  # fmt: skip
    """Loaders of both splits; ``.spec`` of their data sets tells the classes."""
    workers = min(
        num_workers, os.cpu_count() or 1
    )  # more only wait for each other; results do not depend on it

    def loader(split: Any, transform: Any, options: dict[str, Any], size: int) -> Loader:
        dataset = open_dataset(
            data.name, task=task, split=split, root=data.root, transform=transform, **options
        )
        return make_loader(
            dataset, batch_size=size, training=split == "train", num_workers=workers, seed=seed,
            max_bad_images=data.max_bad_images,
        )  # fmt: skip

    return (
        loader("train", train_transform, data.train_options, batch_size),
        loader("val", val_transform, data.val_options, val_batch_size),
    )


def plain_data(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain_data(asdict(value))
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_config(run_dir: Path, config: Any) -> None:
    """Write the resolved configuration beside the metrics; ``--config`` reads it again."""
    write_text(Path(run_dir) / CONFIG_FILE, yaml.safe_dump(plain_data(config), sort_keys=False))


def describe_model(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    """A result's ``model``."""
    locat = getattr(model, "locat_config", None)
    return {
        "name": config.name,
        "label": config.label,
        "kwargs": plain_data(config.kwargs),
        "locat": None if locat is None else plain_data(locat),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def describe_data(data: DataConfig, loader: Loader) -> dict[str, Any]:
    """A result's ``data``, of the split that was measured."""
    spec = loader.dataset.spec
    return {"name": data.name, "split": "val", "images": len(loader.dataset), "classes": spec.num_classes}


def read_run_model(run_dir: Path) -> ModelConfig:
    """The model of a finished training run, with its weights.

    Raises:
        LocAtError: no such run, or one that has not ended.
    """
    run_dir = Path(run_dir)
    config, weights = run_dir / CONFIG_FILE, run_dir / WEIGHTS_FILE
    if not config.is_file() or not weights.is_file():
        raise LocAtError(
            f"{run_dir} is no finished training run: it needs {CONFIG_FILE} and {WEIGHTS_FILE}; "
            "run `locatvit train` to its end first, or name a model and a checkpoint"
        )
    saved = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
    saved["locat"] = None if saved["locat"] is None else LocAtConfig(**saved["locat"])
    saved["kwargs"]["num_classes"] = read_result(run_dir).data["classes"]
    return replace(ModelConfig(**saved), checkpoint=str(weights), pretrained=False)
