"""Reading back what ``save_pretrained`` of a transformers model with LocAt has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from locatvit.backbones.add import add_locat
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError


def load_pretrained(source: str | Path, model_class: Any = None, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """A transformers model with LocAt from a folder or the hub, as its ``save_pretrained`` or ``push_to_hub`` wrote it.

    The library's own ``from_pretrained`` reads the weights into a model that has LocAt already, so that precision,
    shards and renamed keys are its affair.

    Its plain use on such a folder fails: ``config.json`` names an attention, ``"locat"``, that the library does not
    know: an error at once. Where this package has registered it, the library warns of weights that it drops, and the
    first forward pass is an error. Whoever overrides the name (``attn_implementation="sdpa"``) gets that warning only.

    Args:
        source: a folder, or a name on the hub (``"owner/name"`` or ``"hf-hub:owner/name"``).
        model_class: a class of transformers; by default the one that the configuration names.
        backend: see ``LocAtConfig.backend``, which is not saved.
        kwargs: of ``from_pretrained``.

    Raises:
        LocAtError: no such model, one without LocAt, or weights of LocAt are missing or too many.
    """
    import transformers

    from locatvit.backbones.transformers_attention import register

    register()
    source = str(source).removeprefix("hf-hub:")
    where = {name: kwargs[name] for name in ("cache_dir", "revision", "token", "subfolder") if name in kwargs}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **where)
    except (OSError, ValueError) as error:
        raise LocAtError(
            f"cannot read a transformers model at {source}: {str(error).strip().splitlines()[0]}"
        ) from error
    settings = getattr(config, "locat", None)
    if settings is None:
        raise LocAtError(
            f"the config.json of {source} has no LocAt; load it by transformers' from_pretrained, then call add_locat"
        )
    name = (config.architectures or [""])[0]
    model_class = model_class or getattr(transformers, name, None)
    if model_class is None:
        raise LocAtError(f"{source} is of the class {name!r}, which transformers has not; give model_class")
    with_locat = _with_locat(model_class, LocAtConfig(**settings, backend=backend))
    model, found = with_locat.from_pretrained(source, output_loading_info=True, **kwargs)
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise LocAtError(
            f"{source} does not fit {name}: "
            + "; ".join(f"{kind.removesuffix('_keys')} {', '.join(keys[:3])}" for kind, keys in wrong.items() if keys)
        )
    model.__class__ = model_class
    return model


def _with_locat(model_class: Any, config: LocAtConfig) -> Any:
    """The class with LocAt in every new model, for the time of loading."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        add_locat(self, config)

    names = {"__init__": __init__, "__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (model_class,), names)
