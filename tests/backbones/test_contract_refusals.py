"""What add_locat and its configuration refuse, and that a refused model is as it was."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import locatvit
from locatvit import LocAtConfig, LocAtError
from small_models import FAMILIES, REFUSED, VARIANTS, cases, small_kwargs, stir, subjects

pytestmark = pytest.mark.usefixtures("one_thread")

BAD_VALUES: list[Any] = [
    ({"kernel": "gauss"}, "kernel is 'gauss'; it must be one of gaussian, laplace, inverse_distance"),
    ({"alpha": "fixed"}, "alpha is 'fixed'; it must be one of learned, none, auto"),
    ({"start": "zero"}, "start is 'zero'; it must be one of paper, identity"),
    ({"pooling": "max"}, "pooling is 'max'; it must be one of host, avg"),
    ({"variance_scaling": "sqrt"}, "variance_scaling is 'sqrt'; it must be one of linear, area, none"),
    ({"variance": "keys"}, "variance is 'keys'; it must be one of query, input, isotropic, a number"),
    *(
        ({"variance": value}, f"variance is {value}; a fixed one must be a number > 0 (patches²)")
        for value in (0, -1.5, math.inf, math.nan)
    ),
    *(
        ({"variance_floor": value}, f"variance_floor is {value}; it must be 'auto' or a number >= 0 (patches²)")
        for value in (-0.1, math.inf, math.nan)
    ),
    ({"variance": None}, "variance is None"),
    ({"variance_floor": "small"}, "variance_floor is 'small'"),
    ({"layers": 1}, "layers is 1"),
    ({"layers": (0.5,)}, "layers is (0.5,)"),
    ({"layers": "01"}, "layers is '01'"),
    ({"gaug": "no"}, "gaug is 'no'"),
]
_NO_BIAS = "but gaug is False, so there is no bias for it to shape: set gaug to True, or leave {} at {!r}"
SENSELESS: list[Any] = [
    ({"gaug": False, "kernel": "laplace"}, "kernel is 'laplace' " + _NO_BIAS.format("kernel", "gaussian")),
    ({"gaug": False, "variance": "input"}, "variance is 'input' " + _NO_BIAS.format("variance", "query")),
    ({"gaug": False, "variance": 4.0}, "variance is 4.0 " + _NO_BIAS.format("variance", "query")),
    ({"gaug": False, "alpha": "none"}, "alpha is 'none' " + _NO_BIAS.format("alpha", "learned")),
    ({"gaug": False, "layers": (0,)}, "layers is (0,) " + _NO_BIAS.format("layers", None)),
    ({"layers": ()}, "layers is empty; give block indices, None for all blocks, or set gaug to False"),
    *(
        (
            {"kernel": kernel, "variance": "isotropic"},
            f"variance is 'isotropic' but the {kernel} kernel has one width for both axes as it is: "
            "leave variance at 'query'",
        )
        for kernel in ("laplace", "inverse_distance")
    ),
    *(
        (
            {"start": "identity", "alpha": alpha},
            f"start is 'identity' but alpha is '{alpha}', which cannot begin at zero: "
            "use alpha='learned' or start='paper'",
        )
        for alpha in ("none", "auto")
    ),
    ({"pooling": "avg"}, "pooling is 'avg' and prr is True; the average takes PRR's place: set prr to False"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_VALUES + SENSELESS)
def test_config_says_what_is_wrong_in_one_line(fields, message):
    with pytest.raises(LocAtError, match=re.escape(message)) as caught:
        LocAtConfig(**fields)
    assert "\n" not in str(caught.value)


def test_layers_of_a_file_are_a_list():
    assert LocAtConfig(layers=[0, 2]) == LocAtConfig(layers=(0, 2))  # type: ignore[arg-type]


def portrait(model: nn.Module, images: Tensor | None = None) -> dict[str, Any]:
    """Everything that add_locat could have changed."""
    found: dict[str, Any] = {"modules": str(model), "attributes": sorted(vars(model))}
    found["weights"] = {name: (id(value), value._version) for name, value in model.named_parameters()}
    found["hooks"] = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    found["classes"] = [type(module) for module in model.modules()]
    found["pooling"] = [getattr(model, name, None) for name in ("global_pool", "pool_include_prefix", "pos_embed")]
    if images is not None:
        found["output"] = model(images).tolist()
    return found


def check_refused(model: nn.Module, config: LocAtConfig | None, message: str, images: Tensor | None = None) -> None:
    before = portrait(model, images)
    with pytest.raises(LocAtError, match=message) as caught:
        locatvit.add_locat(model, config)
    assert "\n" not in str(caught.value)
    assert portrait(model, images) == before


@cases()
def test_a_second_locat_is_refused(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    check_refused(
        model, LocAtConfig(gaug=False), "this .* has LocAt already; add_locat takes a model without it", images
    )


@pytest.mark.parametrize("layers", [(-1,), (0, 99), (4,)], ids=str)
@subjects()
def test_layers_that_the_model_has_not_are_refused(subject, layers):
    depth = 3 if subject.is_windowed else 2
    message = re.escape(f"layers is {layers}; the model's blocks are numbered 0 to {depth - 1}")
    model, images = stir(subject.plain()), subject.images()
    check_refused(model, LocAtConfig(layers=layers), message, images)
    locatvit.add_locat(model, LocAtConfig(layers=(depth - 1,)))


@pytest.mark.parametrize(("family", "field"), REFUSED)
def test_what_a_family_cannot_serve_is_refused(family, field):
    subject, message = FAMILIES[family], REFUSED[family, field]
    refused = [config for name, config in VARIANTS.items() if name.startswith(f"{field}=")]
    assert refused
    for config in refused:
        check_refused(stir(subject.plain()), config, message, subject.images())


def _vit(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    return timm.create_model(name, **{**small_kwargs(name), **kwargs})


def _with_another_attention(model: Any) -> nn.Module:
    model.blocks[1].attn = nn.MultiheadAttention(24, 3)
    return model


def _swin(**kwargs: Any) -> nn.Module:
    return _vit("swin_tiny_patch4_window7_224", **kwargs)


_AVERAGE = LocAtConfig(prr=False, pooling="avg")
_NO_POSITIONS = LocAtConfig(position_embedding=False)
HOSTS: dict[str, Any] = {
    "another class": (
        lambda: timm.create_model("resnet18"), None,
        "add_locat does not know the model class ResNet; it knows our Jumbo; timm's VisionTransformer .*; .*Swin",
    ),
    "dropped patches": (lambda: _vit(patch_drop_rate=0.5), None, "patch_drop_rate is above 0; .* patch_drop_rate=0"),
    "dropped patches, rope": (
        lambda: _vit("vit_small_patch16_rope_mixed_224", patch_drop_rate=0.5), None, "patch_drop_rate is above 0"
    ),
    "several attentions in a block": (
        lambda: _vit("vit_small_patch16_18x2_224"), None,
        "block 0 is a ParallelThingsBlock and .* LocAt needs timm's Attention: it adds up several attentions",
    ),
    "attention and MLP in one": (
        lambda: _vit(block_fn=ParallelScalingBlock), None,
        "block 0 is a ParallelScalingBlock and .*: it makes queries, keys, values and its MLP in one layer",
    ),
    "the same, naflex": (
        lambda: _vit("naflexvit_base_patch16_gap", block_fn=ParallelScalingBlock), None,
        "block 0 is a ParallelScalingBlock and .* LocAt needs timm's Attention or AttentionRope or EvaAttention: it",
    ),
    "difference of two attentions": (
        lambda: _vit(attn_layer="diff", embed_dim=24, num_heads=3), None,
        "block 0 is a Block and has DiffAttention where .*: it subtracts two softmaxes",
    ),
    "another attention": (
        lambda: _with_another_attention(_vit()), None,
        "block 1 is a Block and has MultiheadAttention where LocAt needs timm's Attention; choose a model built of",
    ),
    "naflex of no grid": (
        lambda: NaFlexVit(NaFlexVitCfg(embed_dim=24, depth=2, num_heads=3, pos_embed="", pos_embed_grid_size=None)),
        None,
        r"pos_embed_grid_size is None, .* create the model with pos_embed_grid_size=\(rows, columns\) or img_size=",
    ),
    "naflex, no positions to remove": pytest.param(
        lambda: _vit("naflexvit_base_patch16_gap", pos_embed="none"), _NO_POSITIONS, "position_embedding is False",
    ),
    "beit, no positions to remove": pytest.param(
        lambda: _vit("beit_base_patch16_224"), _NO_POSITIONS, "position_embedding is False",
    ),
    "swin of another pooling": (
        lambda: _swin(global_pool="max"), _AVERAGE,
        "pooling is 'avg' but this Swin was created with global_pool='max': create it with global_pool='avg'",
    ),
    "swin whose heads do not divide its width": pytest.param(
        lambda: _swin(embed_dim=20, num_heads=(3, 3), head_dim=8), None,
        "embed_dim 40 is no multiple of num_heads 3, which PRR splits it into",
    ),
    "distilled, average": pytest.param(
        lambda: _vit("deit_tiny_distilled_patch16_224"), _AVERAGE, "pooling is 'avg'",
    ),
    "no positions to remove": pytest.param(
        lambda: _vit(pos_embed="none"), _NO_POSITIONS, "position_embedding is False",
    ),
    "unknown backend": pytest.param(
        _vit, LocAtConfig(backend="tritton"), "backend 'tritton' is unknown; did you mean triton",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "config", "message"), HOSTS.values(), ids=HOSTS)
def test_hosts_that_locat_cannot_serve_are_refused(make, config, message):
    check_refused(make(), config, message)


@subjects(lambda subject: subject.takes_masks)
def test_causal_attention_is_refused(subject):
    with pytest.raises(LocAtError, match="is_causal is True; .*: pass an attn_mask instead"):
        subject.build()(subject.images(), is_causal=True)


@subjects(lambda subject: not subject.is_windowed)
def test_miscounted_prefix_tokens_are_named(subject):
    model = subject.build()
    count = model.num_prefix_tokens
    model.blocks[0].attn.num_prefix_tokens = count + 1
    message = rf"grid_size \(3, 3\) has 9 patches but 8 remain after {count + 1} prefix tokens?; are there register"
    with pytest.raises(LocAtError, match=message):
        model(subject.images())


@subjects(lambda subject: not subject.is_windowed)
def test_attention_before_any_image_is_refused(subject):
    model = subject.build()
    with pytest.raises(LocAtError, match="got 9 patches before any image passed the patch embedding; call the model"):
        model.blocks[0](torch.randn(1, model.num_prefix_tokens + 9, model.embed_dim))
