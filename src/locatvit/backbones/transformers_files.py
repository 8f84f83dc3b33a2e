"""Reading back what ``save_pretrained`` of a transformers model with LocAt has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from locatvit.backbones.add import add_locat
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError

_OF_PLACES = ("cache_dir", "revision", "token", "subfolder", "local_files_only")
_PARTS_OF_HEADS = {"classifier", "cls_classifier", "distillation_classifier", "pooler", "head"}


def load_pretrained(
    source: str | Path, model_class: Any = None, *, backend: str = "auto", new_head: bool = False, **kwargs: Any
) -> nn.Module:
    """A transformers model with LocAt from a folder or the hub, as its ``save_pretrained`` or ``push_to_hub`` wrote it.

    The library's own ``from_pretrained`` reads the weights into a model that has LocAt already, so that precision,
    shards and renamed keys are its affair.

    Its plain use on such a folder fails: ``config.json`` names an attention, ``"locat"``, that the library does not
    know: an error at once. Where this package has registered it, the library warns of weights that it drops, and the
    first forward pass is an error. Whoever overrides the name there (``from_pretrained(folder,
    attn_implementation="sdpa")``) gets a plain model and that warning: nothing of this package is asked then. Here the
    same is an error, and so is another attention that is set later.

    Args:
        source: a folder, or a name on the hub (``"owner/name"`` or ``"hf-hub:owner/name"``).
        model_class: a class of transformers; by default the one that the configuration names.
        backend: see ``LocAtConfig.backend``, which is not saved.
        new_head: let the classifier be new where the file has none of this size, as for other classes.
        kwargs: of ``from_pretrained``.

    Raises:
        LocAtError: no such model, one without LocAt, weights of LocAt are missing or too many, or another attention is
            asked for.
    """
    import transformers

    from locatvit.backbones.transformers_attention import IMPLEMENTATION, register

    register()
    if kwargs.get("attn_implementation", IMPLEMENTATION) != IMPLEMENTATION:
        raise LocAtError(
            f"attn_implementation is {kwargs['attn_implementation']!r}, which knows nothing of GAug, so {source} would "
            f"lose it; leave it out, and choose how {IMPLEMENTATION!r} is computed by backend=..."
        )
    source = str(source).removeprefix("hf-hub:")
    where = {
        name: kwargs[name]
        for name in ("cache_dir", "revision", "token", "subfolder", "local_files_only")
        if name in kwargs
    }
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
    if new_head:
        kwargs["ignore_mismatched_sizes"] = True
    model, found = with_locat.from_pretrained(source, output_loading_info=True, **kwargs)
    wrong = unfit(found, but_heads=new_head)
    if any(wrong.values()):
        raise LocAtError(
            f"{source} does not fit {name}: "
            + "; ".join(f"{kind.removesuffix('_keys')} {', '.join(keys[:3])}" for kind, keys in wrong.items() if keys)
        )
    model.__class__ = model_class
    return model


def unfit(found: dict[str, Any], *, but_heads: bool) -> dict[str, list[str]]:
    """What the library reports of loading: names of weights that are missing, unexpected or of another size.

    Args:
        found: its ``loading_info``.
        but_heads: leave out those of classifiers and poolers.
    """
    names = {
        kind: sorted(key if isinstance(key, str) else key[0] for key in found[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    return {
        kind: [key for key in keys if not (but_heads and _PARTS_OF_HEADS & set(key.split(".")))]
        for kind, keys in names.items()
    }


def _with_locat(model_class: Any, config: LocAtConfig) -> Any:
    """The class with LocAt in every new model, for the time of loading."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        add_locat(self, config)

    names = {"__init__": __init__, "__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (model_class,), names)
