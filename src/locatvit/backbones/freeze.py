"""Training of LocAt alone, in a model that is kept as it is."""

from __future__ import annotations

from torch import nn

from locatvit.errors import LocAtError
from locatvit.layers import GAug, PatchRefinement

_PATCH_NORM = "norm_patches"  # Jumbo's, which comes with PRR


def freeze_host(model: nn.Module, *, head: bool = True) -> list[str]:
    """Leave gradients to LocAt's parameters, and to the classifier's; freeze all others, in place.

    Args:
        model: with LocAt.
        head: whether the classifier learns, too; timm's and transformers' models tell which it is.

    Returns:
        The names of the parameters that learn.

    Raises:
        LocAtError: a model without LocAt, or of which it is not known where the classifier is.
    """
    ours = (module for module in model.modules() if isinstance(module, GAug | PatchRefinement))
    learning = {id(parameter) for module in ours for parameter in module.parameters()}
    learning |= {id(parameter) for parameter in getattr(model, _PATCH_NORM, nn.Identity()).parameters()}
    if not hasattr(model, "locat_config"):
        raise LocAtError(
            f"this {type(model).__name__} has no LocAt, so all of it would be frozen; call add_locat first"
        )
    if head:
        learning |= {id(parameter) for parameter in _classifier(model).parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _classifier(model: nn.Module) -> nn.Module:
    if callable(getattr(model, "get_classifier", None)):
        found = model.get_classifier()  # type: ignore[operator]
        return nn.ModuleList(found) if isinstance(found, tuple) else found  # distilled DeiT has two
    found = getattr(model, "classifier", None)
    if hasattr(model, "distillation_classifier"):  # transformers' distilled DeiT
        return nn.ModuleList([model.get_submodule("cls_classifier"), model.get_submodule("distillation_classifier")])
    if not isinstance(found, nn.Module):
        raise LocAtError(
            f"it is not known where the classifier of this {type(model).__name__} is; call freeze_host with head=False "
            "and set requires_grad of its parameters yourself"
        )
    return found
