"""What add_locat promises of any model."""

import copy
import pickle
import threading

import pytest
import timm
import torch

import locatvit
from locatvit import LocAtConfig, LocAtError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
HOSTS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "average pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "q-norm, layer scale": ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1}),
    "timm's prr": ("vit_tiny_patch16_224", {"global_pool": "prr"}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
}


def _host(name, **more):
    model_name, kwargs = HOSTS[name]
    return timm.create_model(model_name, **{**SMALL, **kwargs, **more})


def _images(*size):
    return torch.randn(2, 3, *(size or (32, 32)))


@pytest.fixture(params=HOSTS)
def host(request):
    return _host(request.param).eval()


def test_only_gaug_is_new_and_the_class_stays(host):
    names, kind = set(host.state_dict()), type(host)
    model = locatvit.add_locat(host)
    assert model is host
    assert type(model) is kind
    new = set(model.state_dict()) - names
    assert names <= set(model.state_dict())
    assert new == {
        f"blocks.{i}.attn.gaug.{part}.{kind}"
        for i in range(2)
        for part in ("log_var", "log_alpha")
        for kind in ("weight", "bias")
    }


def test_without_gaug_and_prr_nothing_changes(host):
    images = _images()
    before = host(images)
    assert torch.equal(locatvit.add_locat(host, LocAtConfig(gaug=False, prr=False))(images), before)


def test_alpha_zero_gives_the_hosts_output(host):
    images = _images()
    before = host(images)
    locatvit.add_locat(host, LocAtConfig(prr=False))
    for block in host.blocks:
        torch.nn.init.constant_(block.attn.gaug.log_alpha.bias, -200.0)
        torch.nn.init.zeros_(block.attn.gaug.log_alpha.weight)
    torch.testing.assert_close(host(images), before)


def test_identity_start_gives_the_hosts_output_and_gradients(host):
    images = _images()
    before = host(images)
    locatvit.add_locat(host, LocAtConfig(start="identity"))
    after = host(images)
    torch.testing.assert_close(after, before)
    (after * torch.randn_like(after)).sum().backward()
    assert host.blocks[0].attn.gaug.log_alpha.weight.grad.abs().max() > 0


def test_paper_start_changes_the_output_and_every_gaug_learns(host):
    images = _images()
    before = host(images)
    after = locatvit.add_locat(host)(images)
    assert not torch.allclose(after, before)
    (after * torch.randn_like(after)).sum().backward()
    for block in host.blocks:
        for name, parameter in block.attn.gaug.named_parameters():
            assert parameter.grad.abs().max() > 0, name


def test_without_prr_the_last_gaug_gets_no_gradient():
    model = locatvit.add_locat(_host("plain"), LocAtConfig(prr=False))
    model(_images()).square().sum().backward()
    last, first = model.blocks[-1].attn.gaug, model.blocks[0].attn.gaug
    assert all((parameter.grad == 0).all() for parameter in last.parameters())
    assert all((parameter.grad != 0).any() for parameter in first.parameters())


def test_chosen_layers():
    model = locatvit.add_locat(_host("plain"), LocAtConfig(layers=(1,)))
    assert not hasattr(model.blocks[0].attn, "gaug")
    assert hasattr(model.blocks[1].attn, "gaug")
    assert model(_images()).shape == (2, 5)


def test_features_are_not_refined():
    model = _host("plain").eval()
    images = _images()
    before = model.forward_features(images)
    locatvit.add_locat(model, LocAtConfig(gaug=False))
    assert torch.equal(model.forward_features(images), before)


def test_new_weights_follow_device_and_precision():
    model = locatvit.add_locat(_host("plain").double())
    assert model.blocks[0].attn.gaug.log_var.weight.dtype == torch.float64
    assert model(_images().double()).dtype == torch.float64


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_independent(way, host):
    model = locatvit.add_locat(host)
    other, images = way(model), _images()
    assert torch.equal(other(images), model(images))
    with torch.no_grad():
        other.blocks[0].attn.gaug.log_alpha.bias.fill_(3.0)
    assert not torch.equal(other(images), model(images))


def test_set_input_size_reaches_gaug():
    """(16, 64) has as many patches as (32, 32): only the geometry tells them apart."""
    model = locatvit.add_locat(_host("no positions", dynamic_img_size=True)).eval()
    images = _images(16, 64)
    want = model(images)
    fixed = locatvit.add_locat(_host("no positions")).eval()
    fixed.load_state_dict(model.state_dict())
    fixed.set_input_size((16, 64))
    assert torch.equal(fixed(images), want)


def test_two_threads_with_two_geometries():
    model = locatvit.add_locat(_host("plain", dynamic_img_size=True)).eval()
    inputs = [_images(16, 64), _images(64, 16)]
    want = [model(images) for images in inputs]
    wrong = []

    def work(index):
        with torch.no_grad():
            wrong.extend(not torch.allclose(model(inputs[index]), want[index], atol=1e-6) for _ in range(20))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 40
    assert not any(wrong)


def test_gradient_checkpointing_over_two_sizes():
    """Blocks run again after images of another size have passed."""
    model = locatvit.add_locat(_host("plain", dynamic_img_size=True))
    small, large = _images(16, 24), _images(40, 32)

    def gradients():
        model.zero_grad()
        (model(small).square().sum() + model(large).square().sum()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    want = gradients()
    model.set_grad_checkpointing()
    for got, wanted in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, wanted)


def test_boolean_and_float_masks_agree_and_exclude():
    model = locatvit.add_locat(_host("plain"), LocAtConfig(prr=False)).eval()
    images = _images()
    allowed = torch.rand(17, 17) > 0.3
    allowed.fill_diagonal_(True)
    additive = torch.zeros(17, 17).masked_fill(~allowed, float("-inf"))
    assert torch.equal(model(images, attn_mask=allowed), model(images, attn_mask=additive))
    assert not torch.allclose(model(images, attn_mask=allowed), model(images))


def test_other_sizes_and_padding():
    model = locatvit.add_locat(_host("plain", dynamic_img_size=True, dynamic_img_pad=True)).eval()
    assert model(_images(35, 50)).shape == (2, 5)
    features = locatvit.extract_features(model, _images(35, 50))
    assert features.grid_size == (5, 7)


def test_reset_classifier_keeps_prr():
    model = locatvit.add_locat(_host("plain"))
    model.reset_classifier(3)
    assert model(_images()).shape == (2, 3)
    assert model.attn_pool is not None


def test_bfloat16_autocast_is_close():
    model = locatvit.add_locat(_host("plain")).eval()
    images = _images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(images)
    torch.testing.assert_close(low.float(), model(images), rtol=0.1, atol=0.1)


def test_compiles_to_one_graph(host):
    model = locatvit.add_locat(host)
    images = _images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_exports():
    model = locatvit.add_locat(_host("plain")).eval()
    images = _images()
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images))


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (lambda: locatvit.add_locat(_host("plain")), None, "has LocAt already"),
        (lambda: locatvit.add_locat(_host("plain"), LocAtConfig(gaug=False)), None, "has LocAt already"),
        (
            lambda: timm.create_model("resnet18"),
            None,
            "does not know the model class ResNet; it knows timm's Vision",
        ),
        (lambda: _host("plain", patch_drop_rate=0.5), None, "patch_drop_rate is above 0"),
        (lambda: _host("plain", class_token=False, global_pool="map"), None, "global_pool is 'map'"),
        (
            lambda: _host("plain"),
            LocAtConfig(layers=(2,)),
            r"layers is \(2,\); the model's blocks are numbered 0 to 1",
        ),
        (lambda: timm.create_model("vit_small_patch16_18x2_224", depth=1), None, "block 0 has NoneType"),
    ],
)
def test_refusals_leave_the_model_as_it_was(make, config, message):
    model = make()
    before = str(model)
    with pytest.raises(LocAtError, match=message):
        locatvit.add_locat(model, config)
    assert str(model) == before


def test_causal_attention_is_refused():
    model = locatvit.add_locat(_host("plain"))
    with pytest.raises(LocAtError, match="is_causal is True"):
        model(_images(), is_causal=True)


def test_miscounted_prefix_tokens_are_named():
    model = locatvit.add_locat(_host("plain"))
    model.blocks[0].attn.num_prefix_tokens = 0
    with pytest.raises(LocAtError, match=r"grid_size \(4, 4\) has 16 patches but 17 remain after 0 prefix tokens"):
        model(_images())
