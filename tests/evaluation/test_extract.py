"""Features against what the host's own forward passes through its last layer."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from locatvit import add_locat
from locatvit.errors import LocAtError
from locatvit.evaluation.extract import accept_any_size, extract_features, frozen, frozen_features

SIZE = (48, 112)
GRID = (3, 7)
VITS = {
    "plain": ("vit_tiny_patch16_224", {}, 1, True),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5, True),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0, False),
    "registers only": (
        "vit_tiny_patch16_224",
        {"class_token": False, "reg_tokens": 4, "global_pool": "avg"},
        4,
        False,
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2, True),
    "rotary": ("vit_small_patch16_rope_mixed_224", {}, 1, True),
    "rotary, no class token": (
        "vit_small_patch16_rope_mixed_224",
        {"class_token": False, "global_pool": "avg"},
        0,
        False,
    ),
}


def make_vit(case: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    name, options, _, _ = VITS[case]
    return timm.create_model(name, **{"img_size": SIZE, "depth": 2, "num_classes": 5, **options, **kwargs}).eval()


def make_swin(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "num_classes": 5}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(96, 160), **options, **kwargs).eval()


def run_and_catch(model: nn.Module, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What ``module`` gives while the whole model classifies."""
    caught: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model(images)
    handle.remove()
    (output,) = caught
    return output


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", VITS)
def test_a_vits_features_are_its_last_blocks_raw_output(case, images):
    model = make_vit(case)
    _, _, num_prefix_tokens, has_cls = VITS[case]
    with frozen(model):
        tokens = run_and_catch(model, model.blocks[-1], images)
        features = extract_features(model, images)
    assert tokens.shape[1] == num_prefix_tokens + 21
    assert features.grid_size == GRID
    assert torch.equal(features.prefix, tokens[:, :num_prefix_tokens])
    assert torch.equal(features.patches, tokens[:, num_prefix_tokens:])
    assert torch.equal(features.patch_map[:, :, 2, 5], tokens[:, num_prefix_tokens + 2 * 7 + 5])
    if has_cls:
        assert torch.equal(features.cls, tokens[:, 0])
    else:
        assert features.cls is None


def test_swins_features_are_its_last_stage(images):
    model = make_swin()
    images = torch.randn(2, 3, 96, 160)
    with frozen(model):
        stage = run_and_catch(model, model.layers[-1], images)
        features = extract_features(model, images)
        normed = extract_features(model, images, norm=True)
    assert features.grid_size == (3, 5)
    assert features.cls is None
    assert features.prefix.shape == (2, 0, 192)
    assert torch.equal(features.patches, stage.flatten(1, 2))
    assert torch.equal(normed.patches, model.norm(stage).flatten(1, 2))


def test_a_resnets_features_are_its_last_stage():
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    images = torch.randn(2, 3, 96, 160)
    with frozen(model):
        stage = run_and_catch(model, model.layer4, images)
        features = extract_features(model, images)
    assert features.grid_size == (3, 5)
    assert features.prefix.shape == (2, 0, 512)
    assert torch.equal(features.patch_map, stage)


def test_layer_picks_a_block_and_norm_adds_the_final_norm(images):
    model = make_vit("registers")
    with frozen(model):
        first = run_and_catch(model, model.blocks[0], images)
        last = run_and_catch(model, model.blocks[1], images)
        for layer, tokens in ((0, first), (-2, first), (1, last), (-1, last)):
            assert torch.equal(extract_features(model, images, layer=layer).patches, tokens[:, 5:])
        normed = extract_features(model, images, norm=True)
    assert torch.equal(normed.patches, model.norm(last)[:, 5:])
    assert torch.equal(normed.prefix, model.norm(last)[:, :5])
    assert torch.equal(normed.cls, model.norm(last)[:, 0])
    assert not model.norm._forward_hooks


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: make_vit("no class token"), -1),
        (lambda: timm.create_model("resnet18").eval(), -1),
        (lambda: make_swin(strict_img_size=False), 0),
    ],
    ids=["norm behind the pooling", "no norm", "not the last stage"],
)
def test_a_norm_that_the_model_would_not_apply_is_refused(model, layer, images):
    with pytest.raises(LocAtError, match=r"norm is True, but .* has no final norm to apply .*; set norm to False"):
        extract_features(model(), images, layer=layer, norm=True)


def test_gradients_flow_unless_the_caller_stops_them(images):
    model = make_vit("plain").train()
    features = extract_features(model, images)
    features.patches.square().sum().backward()
    assert model.training
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not extract_features(model, images).patches.requires_grad


def test_frozen_features_are_those_of_evaluation_mode_and_train_a_head(images):
    model = make_vit("plain", drop_path_rate=0.5, proj_drop_rate=0.5)
    expected = extract_features(model, images).patches
    model.train()
    features = frozen_features(model)(images)
    assert torch.equal(features.patches, expected)
    assert not features.patches.requires_grad
    head = nn.Linear(192, 3)
    head(features.patches).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_frozen_puts_every_modules_mode_back():
    model = make_vit("plain").train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    with frozen(model) as same:
        assert same is model
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before


def test_frozen_puts_the_modes_back_after_an_error_too():
    model = make_vit("plain").train()
    with pytest.raises(LocAtError, match="refuses images"):
        frozen_features(model)(torch.zeros(1, 3, 64, 80))
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())


def test_a_model_whose_layers_cannot_be_read_is_refused(images):
    with pytest.raises(LocAtError, match=r"Linear has no forward_intermediates, .*; use a timm model"):
        extract_features(nn.Linear(3, 3), images)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there_is_refused(layer, images):
    with pytest.raises(LocAtError, match=f"layer is {layer}, but VisionTransformer has 2 layers .* from -2 to 1"):
        extract_features(make_vit("plain"), images, layer=layer)


@pytest.mark.parametrize("bad", [torch.zeros(3, *SIZE), torch.zeros(2, 3, *SIZE, dtype=torch.uint8)])
def test_images_of_another_form_are_refused(bad):
    with pytest.raises(LocAtError, match=r"images are torch.* of shape .*; they must be floating point"):
        extract_features(make_vit("plain"), bad)


@pytest.mark.parametrize("make", [lambda: make_vit("plain"), make_swin])
def test_a_size_that_the_model_refuses_gets_a_remedy(make):
    with pytest.raises(LocAtError, match=r"refuses images of 64 x 80 pixels: .*dynamic_img_size=True") as error:
        extract_features(make(), torch.zeros(1, 3, 64, 80))
    assert "\n" not in str(error.value)


ANY_SIZE = {
    **{case: (case, {}) for case in ("plain", "registers", "no class token", "registers only", "distilled")},
    "no position embedding": ("plain", {"pos_embed": "none"}),
    "positions without class token": ("registers", {"no_embed_class": True}),
    "mixed rotary": ("rotary", {}),
}


@pytest.mark.parametrize("size", [SIZE, (112, 48), (80, 64), (70, 101)], ids=str)
@pytest.mark.parametrize("case", ANY_SIZE)
def test_any_size_is_as_if_created_with_dynamic_sizes(case, size):
    base, options = ANY_SIZE[case]
    model = make_vit(base, **options)
    dynamic = make_vit(base, dynamic_img_size=True, dynamic_img_pad=True, **options)
    keys = list(model.state_dict())
    dynamic.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, *size)
    own = model(images) if size == SIZE else None
    assert accept_any_size(accept_any_size(model)) is model
    assert list(model.state_dict()) == keys
    with frozen(model), frozen(dynamic):
        assert torch.equal(model(images), dynamic(images))
        got, expected = extract_features(model, images), extract_features(dynamic, images)
    assert torch.equal(got.patches, expected.patches)
    assert torch.equal(got.prefix, expected.prefix)
    assert got.grid_size == (-(-size[0] // 16), -(-size[1] // 16))
    if own is not None:
        assert torch.equal(model(images), own)


@pytest.mark.parametrize("case", ["plain", "rotary"])
def test_a_dynamic_model_learns_to_pad(case):
    model = accept_any_size(make_vit(case, dynamic_img_size=True))
    assert extract_features(model, torch.zeros(1, 3, 33, 16)).grid_size == (3, 1)


def test_a_dynamic_swin_is_returned_as_it_is():
    model = accept_any_size(make_swin(strict_img_size=False))
    assert extract_features(model, torch.zeros(1, 3, 72, 36)).grid_size == (3, 2)


def test_a_convnet_already_takes_any_size():
    model = timm.create_model("resnet18").eval()
    assert accept_any_size(model) is model
    assert extract_features(model, torch.zeros(1, 3, 70, 33)).grid_size == (3, 2)


@pytest.mark.parametrize("locat", [False, True], ids=["swin", "locatswin"])
@pytest.mark.parametrize("size", [(96, 160), (130, 75), (224, 96)], ids=str)
def test_any_size_of_swin_is_as_if_created_so(locat, size):
    model, dynamic = make_swin(), make_swin(strict_img_size=False)
    if locat:
        add_locat(model), add_locat(dynamic)
    dynamic.load_state_dict(model.state_dict())
    dynamic.patch_embed.dynamic_img_pad = True
    images = torch.randn(2, 3, *size)
    own = model(images) if size == (96, 160) else None
    accept_any_size(model)
    with frozen(model), frozen(dynamic):
        assert torch.equal(model(images), dynamic(images))
        assert extract_features(model, images).grid_size == tuple(-(-side // 32) for side in size)
    if own is not None:
        assert torch.equal(model(images), own)


def test_a_model_that_holds_a_table_to_one_size_is_refused():
    with pytest.raises(LocAtError, match="cannot be switched to other image sizes; create it with"):
        accept_any_size(timm.create_model("vit_small_patch16_rope_224", img_size=SIZE, depth=2))


def make_small(name, **kwargs):
    torch.manual_seed(0)
    options = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return timm.create_model(name, **{**options, **kwargs}).eval()


@pytest.mark.parametrize("locat", [False, True], ids=["plain", "LocAt"])
@pytest.mark.parametrize(
    ("name", "kwargs", "num_prefix_tokens", "has_cls"),
    [
        ("beit_base_patch16_224", {}, 1, True),
        ("vit_relpos_base_patch16_cls_224", {}, 1, True),
        ("vit_relpos_small_patch16_224", {}, 0, False),
        ("naflexvit_base_patch16_gap", {"reg_tokens": 4}, 4, False),
        ("naflexvit_base_patch16_gap", {"class_token": True, "reg_tokens": 2}, 3, True),
    ],
)
def test_features_of_beit_and_naflex(name, kwargs, num_prefix_tokens, has_cls, locat):
    model, images = make_small(name, **kwargs), torch.randn(2, 3, 24, 24)
    if locat:
        add_locat(model)
    with frozen(model):
        tokens = run_and_catch(model, model.blocks[-1], images)
        features = extract_features(model, images)
    assert features.grid_size == (3, 3)
    assert torch.equal(features.prefix, tokens[:, :num_prefix_tokens])
    assert torch.equal(features.patches, tokens[:, num_prefix_tokens:])
    assert (features.cls is not None) == has_cls
    if has_cls:
        assert torch.equal(features.cls, tokens[:, 0])


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (13, 30)], ids=str)
def test_naflex_takes_any_size_and_learns_to_pad(size):
    model = make_small("naflexvit_base_patch16_gap")
    images = torch.randn(2, 3, *size)
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    padded = torch.nn.functional.pad(images, (0, 8 * grid[1] - size[1], 0, 8 * grid[0] - size[0]))
    with frozen(model):
        want = extract_features(model, padded)
        got = extract_features(accept_any_size(model), images)
    assert got.grid_size == grid
    assert torch.equal(got.patches, want.patches)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_relative_positions_hold_a_model_to_one_size(name):
    with pytest.raises(LocAtError, match=r"cannot be switched to other image sizes; create it with img_size=\.\.\."):
        accept_any_size(make_small(name))
