"""The maps are the weights that the model uses: by hand from the formulas, and through its own output."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import formulas
import locatvit
from locatvit import LocAtConfig, LocAtError, attention_maps
from locatvit.analysis.attention_maps import AttentionMaps
from locatvit.layers import LocalityAttention

SMALL = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
GRID = (3, 5)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"name": "vit_tiny_patch16_224"},
    "locat": {},
    "registers": {"reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "q-norm": {"qk_norm": True},
    "one layer": {"locat": LocAtConfig(layers=(1,))},
    "as printed": {"locat": LocAtConfig(variance_floor=0.0, distance_clamp=False)},
}
OTHER_MODELS: dict[str, dict[str, Any]] = {
    "plain rotary": {"name": "vit_tiny_patch16_rope_mixed_224"},
    "rotary": {"name": "locatvit_tiny_rope_mixed"},
    "plain Jumbo": {"name": "jumbo_tiny"},
    "Jumbo": {"name": "locatjumbo_tiny"},
    "laplace": {"locat": LocAtConfig(kernel="laplace")},
    "automatic scaling": {"locat": LocAtConfig(alpha="auto", variance="input")},
}
"""Those that are compared with what comes out of their attention alone."""


def make(name: str, **more: Any) -> nn.Module:
    kwargs = {**SMALL, **{**MODELS, **OTHER_MODELS}[name], **more}
    model = locatvit.create_model(kwargs.pop("name", "locatvit_tiny"), **kwargs).double().eval()
    with torch.no_grad():  # alpha and variance far from their first, equal values
        for key, value in model.named_parameters():
            if ".gaug." in key:
                value.copy_(torch.randn_like(value))
    return model


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *(size or (24, 40)), dtype=torch.float64)


def watch(model: nn.Module) -> dict[int, list[Tensor]]:
    """What goes into each attention and what comes out, by block, filled in a forward pass."""
    seen: dict[int, list[Tensor]] = {}
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda module, args, out, index=index: seen.__setitem__(index, [args[0], out]))
    return seen


def by_hand(attention: nn.Module, x: Tensor, prefix: int) -> Tensor:
    """Eq. 4's weights from the block's parameters and the formulas alone."""
    heads = attention.num_heads
    qkv = F.linear(x, attention.qkv.weight, attention.qkv.bias)
    q, k, _ = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    q, k = attention.q_norm(q), attention.k_norm(k)
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if isinstance(attention, LocalityAttention):
        gaug, patches = attention.gaug, q[:, :, prefix:]
        variance = formulas.variance(gaug.log_var(patches), max(GRID) ** 2) + gaug.variance_floor
        alpha = F.softplus(gaug.log_alpha(patches))[..., 0]
        logits = logits + formulas.supplement(variance, alpha, *GRID, prefix)
    return logits.softmax(dim=-1)


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_weights_of_the_formulas(name: str) -> None:
    model, batch = make(name), images()
    seen = watch(model)
    maps = attention_maps(model, batch)
    assert sorted(maps.weights) == [0, 1, 2]
    assert maps.grid_size == GRID
    assert maps.num_prefix_tokens == model.num_prefix_tokens
    for index, weights in maps.weights.items():
        length = maps.num_prefix_tokens + 15
        assert weights.shape == (2, 3, length, length)
        expected = by_hand(model.blocks[index].attn, seen[index][0], maps.num_prefix_tokens)
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_rows_sum_to_one(name: str) -> None:
    for weights in attention_maps(make(name), images()).weights.values():
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("name", [*MODELS, *OTHER_MODELS])
def test_maps_rebuild_what_the_fused_attention_gives(name: str) -> None:
    model, batch = make(name), images()
    seen = watch(model)
    maps = attention_maps(model, batch)
    for index, block in enumerate(model.blocks):
        x, out = seen[index]
        attention = block.attn
        v = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)[2]
        values = v.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        rebuilt = attention.proj((maps.weights[index] @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(rebuilt, out, rtol=1e-9, atol=1e-12)


def test_locality_shows_in_the_maps() -> None:
    """A strong, narrow bias: each patch looks at itself, and [CLS] is left as it was."""
    model = make("locat")
    with torch.no_grad():
        for block in model.blocks:
            for linear, bias in ((block.attn.gaug.log_var, -9.0), (block.attn.gaug.log_alpha, 30.0)):
                linear.weight.zero_()
                linear.bias.fill_(bias)
    maps = attention_maps(model, images(), layers=[0])
    for row in range(3):
        for column in range(5):
            own = maps.of_patch(0, row, column)[:, :, row, column]
            assert (own > 0.99).all()
    assert (maps.of_prefix(0) < 0.9).all()


def test_chosen_layers_and_the_model_as_it_was() -> None:
    model = make("locat").train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    batch = images()
    maps = attention_maps(model, batch, layers=[-1, 0])
    assert sorted(maps.weights) == [0, 2]
    assert maps.weights[2].equal(attention_maps(model, batch).weights[2])
    assert [module.training for module in model.modules()] == modes
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    assert not maps.weights[0].requires_grad


def test_another_image_size() -> None:
    model = make("locat", dynamic_img_size=True)
    maps = attention_maps(model, images(32, 16), layers=[0])
    assert maps.grid_size == (4, 2)
    assert maps.weights[0].shape[-1] == 9


def test_places_in_the_maps() -> None:
    """Query and key numbered by hand: one prefix token, grid of 2 rows and 3 columns."""
    weights = torch.arange(49.0).reshape(1, 1, 7, 7)
    maps = AttentionMaps({4: weights}, num_prefix_tokens=1, grid_size=(2, 3))
    # patch (1, 2) is token 1 + 1 * 3 + 2 = 6, whose row is 42 .. 48; the first of it is the prefix token's
    assert maps.of_patch(4, 1, 2).tolist() == [[[[43, 44, 45], [46, 47, 48]]]]
    assert maps.of_prefix(4).tolist() == [[[[1, 2, 3], [4, 5, 6]]]]


@pytest.mark.parametrize(("row", "column"), [(2, 0), (0, 3), (-1, 0)])
def test_no_such_patch(row: int, column: int) -> None:
    maps = AttentionMaps({0: torch.ones(1, 1, 7, 7)}, num_prefix_tokens=1, grid_size=(2, 3))
    with pytest.raises(LocAtError, match=rf"patch \({row}, {column}\) lies outside the grid \(2, 3\)"):
        maps.of_patch(0, row, column)


def test_no_such_prefix_token_or_block() -> None:
    maps = AttentionMaps({0: torch.ones(1, 1, 7, 7)}, num_prefix_tokens=1, grid_size=(2, 3))
    with pytest.raises(LocAtError, match="token is 1; the model has 1 prefix tokens, numbered from 0"):
        maps.of_prefix(0, token=1)
    with pytest.raises(LocAtError, match=r"layer is 3; the maps are of the blocks 0"):
        maps.of_prefix(3)


@pytest.mark.parametrize("layers", [[3], [-4]])
def test_no_such_layer(layers: list[int]) -> None:
    with pytest.raises(LocAtError, match=rf"layers is \[{layers[0]}\]; the model's blocks are numbered 0 to 2"):
        attention_maps(make("locat"), images(), layers)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_models_without_such_attention(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(LocAtError, match=f"cannot read {type(model).__name__}; it needs blocks whose attn"):
        attention_maps(model, torch.zeros(1, 3, 224, 224, device="meta"))
