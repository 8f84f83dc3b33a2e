"""What all runs share: models and loaders by configuration, and how results describe them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from locatvit.backbones import BACKBONES
from locatvit.backbones.add import add_locat
from locatvit.backbones.checkpoint import Weights
from locatvit.backbones.registry import MODELS, TRANSFORMERS, check_name, create_model
from locatvit.config import LocAtConfig
from locatvit.data import ImageDataset, Split, Task, open_dataset
from locatvit.data.loader import Loader, make_loader
from locatvit.errors import LocAtError
from locatvit.recipes.config import DataConfig, ModelConfig
from locatvit.recipes.folder import plain_data, read_config
from locatvit.results import CONFIG_FILE, RESULT_FILE, read_result

WEIGHTS_FILE = "model.safetensors"


class ModelPlan:
    """A model whose name and checkpoint are known to be good, before the data tell the number of classes.

    Args:
        config: see ``ModelConfig``.

    Raises:
        LocAtError: an unknown name, or a checkpoint that is missing or cannot be read.
    """

    def __init__(self, config: ModelConfig) -> None:
        check_name(config.name)
        self._config = config
        self._weights = None if config.checkpoint is None else Weights.read(config.checkpoint)

    def build(self, num_classes: int | None = None) -> nn.Module:
        """The model with its weights; ``num_classes`` are the data's, None to leave the head as it is.

        Raises:
            LocAtError: the configuration has another number of classes, or the model cannot be created with
                it, or the checkpoint does not fit.
        """
        config, kwargs = self._config, dict(self._config.kwargs)
        if num_classes is not None and kwargs.setdefault("num_classes", num_classes) != num_classes:
            raise LocAtError(
                f"model.kwargs has num_classes={kwargs['num_classes']} but the data has {num_classes} "
                "classes; leave it out"
            )
        if config.name in MODELS or config.name.startswith(TRANSFORMERS):
            model = create_model(config.name, config.pretrained, locat=config.locat, **kwargs)
        else:
            model = create_model(config.name, config.pretrained, **kwargs)
            if config.locat is not None:
                add_locat(model, config.locat)
        return model if self._weights is None else self._weights.load_into(model)


def build_model(config: ModelConfig, num_classes: int | None = None) -> nn.Module:
    """The model of a configuration, with its weights loaded; see ``ModelPlan``."""
    return ModelPlan(config).build(num_classes)


def build_loader(
    data: DataConfig,
    task: Task,
    split: Split,
    transform: Any,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    training: bool | None = None,
    wrap: Callable[[ImageDataset], ImageDataset] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Loader:
    """The loader of one split, with no more workers than there are cores: more would wait for each other.

    Args:
        data: which data.
        task, split, transform: see ``open_dataset``.
        batch_size, num_workers, seed: see ``make_loader``.
        training: shuffle, and leave out an incomplete last batch; None for the training split alone.
        wrap: the data set to one that stands before it.
        collate_fn: makes a batch of its samples; None for that of ``make_loader``.

    Raises:
        LocAtError: the data cannot be opened; see ``open_dataset`` and ``make_loader``.
    """
    options = data.train_options if split == "train" else data.val_options
    dataset = open_dataset(data.name, task=task, split=split, root=data.root, transform=transform, **options)
    return make_loader(
        dataset if wrap is None else wrap(dataset),
        batch_size=batch_size,
        training=split == "train" if training is None else training,
        num_workers=min(num_workers, _num_cores()),
        seed=seed,
        max_bad_images=data.max_bad_images,
        collate_fn=collate_fn,
    )


def batch_share(batch_size: int, num_processes: int) -> int:
    """What each process has of a batch; Accelerate gives every process batches of its own.

    Raises:
        LocAtError: the batch cannot be shared out evenly.
    """
    if batch_size % num_processes:
        raise LocAtError(
            f"batch_size is {batch_size}, over {num_processes} processes together; it must be a multiple of "
            "their number"
        )
    return batch_size // num_processes


def _num_cores() -> int:
    # where the system can tell, those that this process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def saved_model(saved: dict[str, Any]) -> ModelConfig:
    """The model of a saved configuration.

    Raises:
        TypeError, KeyError: it is of another version.
    """
    return ModelConfig(**{**saved, "locat": saved["locat"] and LocAtConfig(**saved["locat"])})


def read_run_model(run_dir: Path) -> ModelConfig:
    """The model of a finished training run, with its weights.

    Raises:
        LocAtError: no such run, or one that has not ended.
    """
    run_dir = Path(run_dir)
    needed = (CONFIG_FILE, WEIGHTS_FILE, RESULT_FILE)
    missing = [name for name in needed if not (run_dir / name).is_file()]
    if missing:
        raise LocAtError(
            f"{run_dir} is no finished training run, it lacks {', '.join(missing)}; run `locatvit train` "
            "to its end first, or name a model and a checkpoint"
        )
    saved = read_config(run_dir)["model"]
    try:
        model = saved_model(saved)
        num_classes = read_result(run_dir).data["classes"]
    except (TypeError, KeyError) as error:
        raise LocAtError(
            f"{run_dir}/{CONFIG_FILE} is of another version of locatvit ({error}); name the model and its "
            f"checkpoint {run_dir / WEIGHTS_FILE} instead of the run"
        ) from error
    return replace(
        model,
        kwargs={**model.kwargs, "num_classes": num_classes},
        checkpoint=str(run_dir / WEIGHTS_FILE),
        pretrained=False,
    )


def describe_model(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    """A result's ``model``."""
    locat = getattr(model, "locat_config", None)
    return {
        "name": config.name,
        "label": config.label or _kind(model, config),
        "kwargs": plain_data(config.kwargs),
        "locat": None if locat is None else plain_data(locat),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _kind(model: Any, config: ModelConfig) -> str:
    """The family of a model; of a transformers model, which are all in one, the library's word for its kind."""
    if config.name.startswith(TRANSFORMERS):
        return str(model.config.model_type)
    return next((family.name for family in BACKBONES if family.matches(model)), config.name)


def describe_data(data: DataConfig, loader: Loader) -> dict[str, Any]:
    """A result's ``data``, of the split that was measured."""
    return {
        "name": data.label or data.name,
        "split": "val",
        "images": loader.num_images,
        "classes": loader.spec.num_classes,
    }
