"""A model against the authors' outputs: see ``golden/README.md``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locatvit.layers import GAug, PatchRefinement

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
_RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-11}
_SUFFIX = {torch.float32: "", torch.float64: "_f64"}


def keys(name: str) -> dict[str, Any]:
    """``state_dict``, names and shapes in order, and ``parameters``, their number."""
    return json.loads((GOLDEN / "keys" / f"{name}.json").read_text())


def read(name: str) -> Mapping[str, np.ndarray]:
    return np.load(GOLDEN / f"{name}.npz")


def fill(model: nn.Module) -> nn.Module:
    """The model with the weights that the golden files were made with."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    arrays = recipe.init_state(shapes)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The golden files' input, by default two images of 224 x 224."""
    return torch.from_numpy(recipe.make_input(shape or (2, 3, 224, 224))).to(dtype)


def relative(got: Any, want: Any) -> float:
    """The largest difference over the largest value."""
    got, want = np.asarray(got, np.float64).reshape(-1), np.asarray(want, np.float64).reshape(-1)
    return np.abs(got - want).max() / np.abs(want).max()


def gradient_norms(model: nn.Module) -> dict[str, float]:
    # in double: float32 loses four digits over the five million numbers of Jumbo's MLP
    return {name: parameter.grad.double().norm().item() for name, parameter in model.named_parameters()}


def check_keys(name: str, model: nn.Module) -> None:
    """Names, shapes, their order, and the number of parameters."""
    listed = keys(name)
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == listed["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == listed["parameters"]


def check_outputs_and_gradients(
    name: str, model: nn.Module, dtype: torch.dtype, bound: float | None = None, slack: float = 0.0
) -> None:
    """Logits, loss and the norm of every gradient, ``slack`` times the largest one's allowed to all."""
    golden, suffix, bound = read(name), _SUFFIX[dtype], bound or _RELATIVE[dtype]
    model = fill(model).to(dtype).eval()
    logits = model(images(dtype=dtype))
    loss = logits.square().mean()
    loss.backward()
    assert relative(logits.detach(), golden[f"logits{suffix}"]) < bound
    assert relative(loss.detach(), golden[f"loss{suffix}"]) < bound
    norms = gradient_norms(model)
    assert list(norms) == [str(key) for key in golden["grad_names"]]
    for (key, norm), want in zip(norms.items(), golden[f"grad_norms{suffix}"], strict=True):
        assert norm == pytest.approx(want, rel=10 * bound, abs=slack * max(norms.values())), key


def check_inner_tokens(name: str, model: nn.Module) -> None:
    """The tokens after the first block, the last, the final norm and PRR."""
    golden = read(name)
    model = fill(model).eval()
    found: dict[str, Tensor] = {}
    blocks = [module for path, module in model.named_modules() if path.split(".")[-2:-1] == ["blocks"]]
    refinement = next(module for module in model.modules() if isinstance(module, PatchRefinement))
    for key, block in (("block_first", blocks[0]), ("block_last", blocks[-1])):
        block.register_forward_hook(lambda _module, _args, out, key=key: found.update({key: out}))
    with torch.no_grad():
        found["features"] = model.forward_features(images())
        found["refined"] = refinement(found["features"].flatten(1, -2)).view_as(found["features"])
    for key, tensor in found.items():
        assert tuple(tensor.shape) == tuple(golden[f"{key}_shape"]), key
        assert relative(tensor.flatten()[:: int(golden[f"{key}_step"])], golden[key]) < 1e-5, key


def check_variance_and_alpha(name: str, model: nn.Module) -> None:
    """Mean, standard deviation, least and most of both, layer by layer."""
    golden = read(name)
    model = fill(model).eval()
    gaugs = {path: module for path, module in model.named_modules() if isinstance(module, GAug)}
    assert list(gaugs) == [str(path) for path in golden["gaug_layers"]]
    found: list[tuple[Tensor, Tensor]] = []
    for gaug in gaugs.values():
        gaug.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(module.variance_and_alpha(*args, **kwargs)), with_kwargs=True
        )
    with torch.no_grad():
        model(images())
    for layer, both in enumerate(found):
        for kind, values in zip(("var", "alpha"), both, strict=True):
            stats = [values.mean(), values.std(), values.min(), values.max()]
            assert relative([s.item() for s in stats], golden[f"{kind}_stats"][layer]) < 1e-4
