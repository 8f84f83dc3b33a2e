"""Maps of transformers' models, plain and with LocAt: the weights that reproduce what comes out of the attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from locatvit import LocAtConfig, LocAtError, attention_maps
from locatvit.evaluation.extract import accept_any_size
from small_transformers import BY_NAME, VIT, Host, hosts, images


def attentions_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "v_proj")][-2:]


def watch(attention: Any) -> dict[str, Tensor]:
    """The values and what the output projection gets, of the next forward pass."""
    seen: dict[str, Tensor] = {}
    projection = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    attention.v_proj.register_forward_hook(lambda module, args, out: seen.__setitem__("values", out))
    projection.register_forward_pre_hook(lambda module, args: seen.__setitem__("mixed", args[0]))
    return seen


@hosts
@pytest.mark.parametrize("config", [None, LocAtConfig(), LocAtConfig(kernel="laplace")], ids=["plain", "LocAt", "L"])
def test_the_maps_are_the_weights_that_were_used(host: Host, config: LocAtConfig | None) -> None:
    model: Any = (host.plain() if config is None else host.build(config)).train()
    accept_any_size(model)
    seen = [watch(attention) for attention in attentions_of(model)]
    maps = attention_maps(model, images(16, 37))
    assert model.training
    assert maps.grid_size == (2, 5)
    assert maps.num_prefix_tokens == host.num_prefix_tokens
    assert sorted(maps.weights) == [0, 1]
    for index, found in enumerate(seen):
        weights = maps.weights[index]
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 10 + host.num_prefix_tokens))
        values = found["values"].unflatten(-1, (3, 8)).transpose(1, 2)
        torch.testing.assert_close((weights @ values).transpose(1, 2).flatten(2), found["mixed"])


def test_nothing_is_asked_for_after_it() -> None:
    model = VIT.build()
    attention_maps(model, images(), [-1])
    assert not any(attention.locality.tells_weights for attention in attentions_of(model))
    assert model(images(), output_attentions=False).attentions is None


def test_the_librarys_plain_attention_tells_its_weights_itself() -> None:
    model, x = BY_NAME["SiglipForImageClassification"].plain(), images()
    want = attention_maps(model, x).weights[1]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(attention_maps(model, x).weights[1], want)


def test_mistakes() -> None:
    with pytest.raises(LocAtError, match=r"layers is \[2\]; the model's blocks are numbered 0 to 1"):
        attention_maps(VIT.build(), images(), [2])
    with pytest.raises(LocAtError, match="refuses images of 16 x 40 pixels"):
        attention_maps(VIT.build(), images(16, 40))
