"""Features of transformers' models, plain and with LocAt, against the library's own outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import locatvit
from locatvit import LocAtConfig, LocAtError, extract_features
from locatvit.evaluation.extract import accept_any_size, frozen, frozen_features
from small_transformers import BY_NAME, HOSTS, SIZES, VIT, Host, images, order, transformers

BEIT = BY_NAME["BeitForImageClassification"]
# its norm is behind the pooling by default
BEIT_WITH_A_NORM = replace(BEIT, settings={**BEIT.settings, "use_mean_pooling": False})
hosts = pytest.mark.parametrize(
    "host", [BEIT_WITH_A_NORM if host is BEIT else host for host in HOSTS], ids=lambda host: host.name
)
HAS_CLS = {"SiglipForImageClassification": False, "IJepaForImageClassification": False}
RAW = ("CLIPForImageClassification",)
"""Whose ``last_hidden_state`` is not normed."""
both = pytest.mark.parametrize("with_locat", [False, True], ids=["plain", "LocAt"])


def build(host: Host, with_locat: bool) -> Any:
    return host.build(LocAtConfig()) if with_locat else host.plain()


def backbone_of(model: Any) -> Any:
    if type(model).__name__.endswith("Model"):
        return model
    return next(part for part in model.children() if isinstance(part, transformers.PreTrainedModel))


def norm_of(backbone: Any) -> Any:
    return next(getattr(backbone, name) for name in ("layernorm", "post_layernorm", "norm") if hasattr(backbone, name))


def last(model: Any, x: torch.Tensor, **kwargs: Any) -> Any:
    noise = {"noise": order(x)} if "MAE" in type(model).__name__ else {}
    return backbone_of(model)(x, **noise, **kwargs)


@hosts
@both
def test_features_are_the_last_blocks_raw_output(host, with_locat):
    model, x, count = build(host, with_locat), images(), host.num_prefix_tokens
    with frozen(model):
        want = last(model, x).last_hidden_state
        features, normed = extract_features(model, x), extract_features(model, x, norm=True)
        norm = norm_of(backbone_of(model))
        by_hand = F.layer_norm(
            torch.cat((features.prefix, features.patches), 1), (24,), norm.weight, norm.bias, norm.eps
        )
    assert features.grid_size == (3, 3)
    assert features.prefix.shape == (2, count, 24)
    got = features if host.name in RAW else normed
    torch.testing.assert_close(got.patches, want[:, count:])
    torch.testing.assert_close(got.prefix, want[:, :count])
    torch.testing.assert_close(torch.cat((normed.prefix, normed.patches), 1), by_hand)
    assert (features.cls is not None) == HAS_CLS.get(host.name, True)
    if features.cls is not None:
        assert torch.equal(features.cls, features.prefix[:, 0])


@hosts
def test_a_layer_is_the_output_of_its_block(host):
    model, x = host.build(), images()
    with frozen(model):
        hidden = last(model, x, output_hidden_states=True).hidden_states[1]
        for layer in (0, -2):
            features = extract_features(model, x, layer=layer)
            torch.testing.assert_close(torch.cat((features.prefix, features.patches), 1), hidden)
    with pytest.raises(LocAtError, match=r"layer is 2, but .* has 2 layers to read; give one from -2 to 1"):
        extract_features(model, x, layer=2)


@hosts
@both
def test_any_size_is_the_librarys_own_resampling_of_a_padded_image(host, with_locat):
    model, x = build(host, with_locat), images(15, 37)
    padded = F.pad(x, (0, 3, 0, 1))
    with frozen(model):
        asked = {"interpolate_pos_encoding": True} if host.call else {}
        want = last(model, padded, **asked).last_hidden_state[:, host.num_prefix_tokens :]
        assert accept_any_size(accept_any_size(model)) is model
        features = extract_features(model, x, norm=host.name not in RAW)
    assert features.grid_size == (2, 5)
    torch.testing.assert_close(features.patches, want)


@hosts
def test_any_size_leaves_the_output_at_the_models_own(host):
    model, x = host.build(), images()
    with frozen(model):
        want = host.run(model, x)
        assert torch.equal(host.run(accept_any_size(model), x), want)


@hosts
def test_another_size_is_refused_until_it_is_accepted(host):
    model = host.plain()
    with pytest.raises(LocAtError, match=r"refuses images of 27 x 40 pixels: .*call accept_any_size\(model\)"):
        extract_features(model, images(27, 40))
    if host.call:  # as many patches as the model's own, at other places
        with pytest.raises(LocAtError, match=r"refuses images of 8 x 72 pixels: it is made for \(24, 24\)"):
            extract_features(model, images(8, 72))
    else:
        assert extract_features(model, images(16, 40)).grid_size == (2, 5)


def test_frozen_features_and_gradients():
    model, x = VIT.build().train(), images()
    features = frozen_features(model)(x)
    assert not features.patches.requires_grad
    assert model.training
    extract_features(model, x).patches.square().sum().backward()
    assert model.vit.layers[0].attention.gaug.log_var.weight.grad.abs().sum() > 0


def test_masked_patches_are_refused():
    host = replace(BY_NAME["ViTMAEModel"], settings={"mask_ratio": 0.75})
    with pytest.raises(
        LocAtError, match="mask_ratio is 0.75, so this ViTMAEModel drops patches; set model.config.mask"
    ):
        extract_features(host.plain(), images())


def test_a_model_without_a_final_norm_is_refused():
    with pytest.raises(LocAtError, match="norm is True, but BeitModel has no final norm"):
        extract_features(BEIT.plain(), images(), norm=True)


def test_positions_that_are_no_square_are_refused():
    settings = VIT.settings_of_config()
    settings.image_size = (24, 40)
    with pytest.raises(LocAtError, match="cannot be switched to other image sizes"):
        accept_any_size(transformers.ViTModel(settings))


def test_other_models_of_the_library_are_refused():
    model = transformers.SwinModel(transformers.SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=32))
    with pytest.raises(LocAtError, match="SwinModel has no forward_intermediates, .* one of transformers' ViT family"):
        extract_features(model, torch.zeros(1, 3, 32, 32))


def test_a_backbone_class():
    model = transformers.Dinov2Backbone(transformers.Dinov2Config(**SIZES)).eval()
    x = images()
    with torch.no_grad():
        want = model(x).feature_maps[-1]
        assert torch.equal(extract_features(model, x, norm=True).patch_map, want)
        locatvit.add_locat(model, LocAtConfig(prr=False))
        assert not torch.allclose(extract_features(model, x, norm=True).patch_map, want)
