"""Models of Hugging Face transformers by name: ``hf/owner/name`` on the hub, or ``hf/FOLDER``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from locatvit.backbones.add import add_locat
from locatvit.backbones.checkpoint import fetch, hub_answers
from locatvit.backbones.registry import TRANSFORMERS
from locatvit.backbones.transformers_files import load_pretrained, unfit
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError, near_matches
from locatvit.transformers_hosts import image_size, towers_of

_CONFIG_FILE = "config.json"
_TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Of models of images and text, the part for images."""
# what the library raises on a model that cannot be made or read
_REFUSALS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)


class AnswerTensor:
    """Forward hook on a model: gives its logits alone or, where it has no head, its last tokens, as timm's do."""

    def __call__(self, model: nn.Module, args: Any, output: Any) -> Tensor:
        logits = getattr(output, "logits", None)
        found: Tensor = output.last_hidden_state if logits is None else logits
        return found


def check_name(name: str) -> None:
    """Raise ``LocAtError`` where the library is missing, or no configuration is at the place that a name tells."""
    _config_folder(name)


def create(name: str, pretrained: bool = False, *, locat: LocAtConfig | None = None, **kwargs: Any) -> nn.Module:
    """A model of transformers by its name, which answers images with a tensor, as timm's do.

    It is a classifier where ``num_classes`` is given or the configuration names one, and else the backbone, of CLIP and
    SigLIP the tower for images.

    Args:
        name: ``hf/`` and a name on the hub or a folder of ``save_pretrained``, with LocAt or without.
        pretrained: read the weights; else only the configuration.
        locat: LocAt's settings, for a model that was saved without.
        kwargs: ``num_classes``, and settings of the model's configuration, e.g. ``image_size`` or ``mask_ratio``.

    Raises:
        LocAtError: the library is missing, there is no such model, it cannot be made with these settings, its weights
            do not fit, or LocAt cannot go into it.
    """
    import transformers

    num_classes = kwargs.pop("num_classes", None)
    folder = _config_folder(name)
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(folder)
            model_class, config = _class_of(config, num_classes, name)
            _set(config, kwargs, name)
            model = _make(name, model_class, config, pretrained, locat)
    except LocAtError:
        raise
    except _REFUSALS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in {"pretrained": pretrained, **kwargs}.items())
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LocAtError(f"model {name!r} cannot be created with {given}: {reason}") from error
    model.register_forward_hook(AnswerTensor())
    if towers := towers_of(model):
        model.pretrained_cfg = {"input_size": (3, *image_size(towers[0][0]))}  # timm's word for what others ask for
    return model


def _source(name: str) -> str:
    """The folder or the repository's name."""
    return name.removeprefix(TRANSFORMERS)


def _config_folder(name: str) -> Path:
    if importlib.util.find_spec("transformers") is None:
        raise LocAtError(f"model {name!r} needs transformers; install it: pip install 'locatvit[hf]'")
    source = _source(name)
    if source and Path(source).is_dir():
        return fetch(source, _CONFIG_FILE).parent
    if not source or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise LocAtError(f"model {name!r}: there is no folder {source!r}; give hf/FOLDER or hf/OWNER/NAME of the hub")
    return fetch(f"hf-hub:{source}", _CONFIG_FILE).parent


def _where(name: str) -> dict[str, Any]:
    """Without asking a hub that does not answer, which takes half a minute."""
    return {"local_files_only": not Path(_source(name)).is_dir() and not hub_answers()}


def _class_of(config: Any, num_classes: int | None, name: str) -> tuple[Any, Any]:
    """The class, and the configuration that it takes."""
    import transformers

    architecture = next(iter(config.architectures or ()), "")
    if num_classes is None and "ForImageClassification" not in architecture:
        if config.model_type in _TOWERS and not hasattr(config, "locat"):
            return getattr(transformers, _TOWERS[config.model_type]), config.vision_config
        return transformers.AutoModel._model_mapping[type(config)], config
    if num_classes is not None and num_classes != config.num_labels:
        config.num_labels = num_classes
    found = transformers.AutoModelForImageClassification._model_mapping.get(type(config), None)
    if found is None:
        raise LocAtError(
            f"model {name!r}: transformers has no classifier of images of the kind {config.model_type!r}; leave "
            "num_classes out, and use it for its features"
        )
    kinds = found if isinstance(found, tuple) else (found,)
    return next((kind for kind in kinds if kind.__name__ == architecture), kinds[0]), config


def _set(config: Any, settings: dict[str, Any], name: str) -> None:
    for key, value in settings.items():
        if not hasattr(config, key):
            raise LocAtError(
                f"model {name!r} has no setting {key!r}; {near_matches(key, [k for k in config.to_dict() if k != key])}"
            )
        setattr(config, key, value)


def _make(name: str, model_class: Any, config: Any, pretrained: bool, locat: LocAtConfig | None) -> Any:
    saved = getattr(config, "locat", None)
    if saved is not None:
        backend = LocAtConfig.backend if locat is None else locat.backend  # which is not saved
        own = LocAtConfig(**saved, backend=backend)
        if locat not in (None, own):
            raise LocAtError(f"model {name!r} was saved with LocAt, whose settings are its own; leave locat out")
        if pretrained:
            return load_pretrained(
                _source(name), model_class, backend=backend, new_head=True, config=config, **_where(name)
            )
        config.attn_implementation = None
        return add_locat(model_class(config), own)
    model = _with_weights(name, model_class, config) if pretrained else model_class(config)
    return model if locat is None else add_locat(model, locat)


def _with_weights(name: str, model_class: Any, config: Any) -> Any:
    """Of a head for other classes than the checkpoint's, the weights are new; what the model lacks is left out."""
    model, found = model_class.from_pretrained(
        _source(name), config=config, output_loading_info=True, ignore_mismatched_sizes=True, **_where(name)
    )
    lacking = unfit(found, but_heads=True)
    wrong = lacking["missing_keys"] + lacking["mismatched_keys"]
    if wrong:
        raise LocAtError(
            f"the weights of {name!r} do not fit its {model_class.__name__}: {', '.join(wrong[:3])}"
            f"{' and others' if len(wrong) > 3 else ''} are missing or of another size; leave its settings as they are"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and reports of loading, which ``unfit`` reads."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
