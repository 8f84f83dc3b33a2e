"""``add_locat``: from a model to the same model with LocAt."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from locatvit.backbones import BACKBONES
from locatvit.backbones.refusals import reason_against
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError, near_matches
from locatvit.layers import LocalityAttention
from locatvit.ops import BACKENDS

Model = TypeVar("Model", bound=nn.Module)


def add_locat(model: Model, config: LocAtConfig | None = None) -> Model:
    """Put GAug into every attention of ``model`` and PRR before its head; in place.

    ``reset_classifier(n)`` keeps PRR; with another pooling than the present one timm drops it.

    The model keeps its class and its weights their names; only ``...attn.gaug.*`` is new (and one ``gate``
    with ``start="identity"``). New weights are on the device and in the precision of the model's.

    Args:
        model: of a family in ``BACKBONES``.
        config: what to add; the defaults are the paper's.

    Returns:
        The model itself, with ``locat_config`` set.

    Raises:
        LocAtError: an unknown family, a model that has LocAt already, or settings of it that LocAt cannot
            serve; the model is then as it was.
    """
    config = config or LocAtConfig()
    if any(isinstance(module, LocalityAttention) for module in model.modules()) or hasattr(model, "locat_config"):
        raise LocAtError(f"this {type(model).__name__} has LocAt already; add_locat takes a model without it")
    if config.backend not in (*BACKENDS, "auto"):
        raise LocAtError(f"backend {config.backend!r} is unknown; {near_matches(config.backend, [*BACKENDS, 'auto'])}")
    for family in BACKBONES:
        if family.matches(model):
            family.add(model, config)
            model.locat_config = config  # type: ignore[assignment]
            return model
    known = "; ".join(family.description for family in BACKBONES)
    if reason := reason_against(type(model)):
        raise LocAtError(f"add_locat cannot serve {type(model).__name__}: {reason}; it knows {known}")
    raise LocAtError(f"add_locat does not know the model class {type(model).__name__}; it knows {known}")
