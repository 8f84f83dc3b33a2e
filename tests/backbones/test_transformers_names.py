"""transformers' models by name, as configurations and the command line say it: hf/FOLDER and hf/owner/name."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import locatvit
from locatvit import LocAtConfig, LocAtError, create_model, extract_features
from locatvit.backbones import checkpoint
from locatvit.backbones.transformers_files import load_pretrained
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.run import build_model, describe_model
from small_models import gaugs, stir
from small_transformers import BY_NAME, SIZES, VIT, Host, hosts, images, transformers

pytestmark = pytest.mark.usefixtures("one_thread")
NO_CLASSIFIER = ("DINOv3ViTModel", "ViTMAEModel")


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return f"hf/{folder}"


@hosts
@pytest.mark.parametrize("with_locat", [False, True], ids=["plain", "LocAt"])
def test_a_folder_is_the_model_again(host, with_locat, tmp_path):
    model = host.build(LocAtConfig()) if with_locat else host.plain()
    again = create_model(saved(model, tmp_path), pretrained=True).eval()
    assert type(again) is type(model)
    assert hasattr(again, "locat_config") == with_locat
    x = images()
    with torch.no_grad():
        assert torch.equal(extract_features(again, x).patches, extract_features(model, x).patches)
        if host.name not in NO_CLASSIFIER:
            assert torch.equal(again(x), host.run(model, x))  # a tensor, as timm's models answer


@hosts
@pytest.mark.parametrize("with_locat", [False, True], ids=["plain", "LocAt"])
def test_other_classes_get_a_new_head_and_nothing_else(host, with_locat, tmp_path):
    model = host.build(LocAtConfig()) if with_locat else host.plain()
    name = saved(model, tmp_path)
    if host.name in NO_CLASSIFIER:
        with pytest.raises(
            LocAtError, match="transformers has no classifier of images of the kind .*; leave num_classes"
        ):
            create_model(name, pretrained=True, num_classes=7)
        return
    again = create_model(name, pretrained=True, num_classes=7).eval()
    x = images()
    with torch.no_grad():
        assert again(x).shape == (2, 7)
        assert torch.equal(extract_features(again, x).patches, extract_features(model, x).patches)


def test_locat_is_added_to_a_plain_one(tmp_path):
    name = saved(VIT.plain(), tmp_path)
    identity = LocAtConfig(start="identity")
    plain, model = create_model(name, True).eval(), build_model(ModelConfig(name, locat=identity, pretrained=True))
    assert len(gaugs(model)) == 2
    x = images()
    torch.testing.assert_close(model.eval()(x), plain(x))
    assert describe_model(model, ModelConfig(name))["label"] == "vit"


def test_without_weights_and_with_settings(tmp_path):
    torch.manual_seed(1)
    name = saved(VIT.build(), tmp_path)
    model = create_model(name, num_hidden_layers=1, image_size=16)
    assert len(gaugs(model)) == 1
    assert model(images(16, 16)).shape == (2, 5)
    with pytest.raises(LocAtError, match="has no setting 'num_hiden_layers'; did you mean num_hidden_layers"):
        create_model(name, num_hiden_layers=1)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_of_images_and_text_the_images(name, tmp_path):
    host = Host(name, name.removesuffix("Model") + "Config", 0)
    model = host.plain()
    tower = create_model(saved(model, tmp_path), pretrained=True)
    assert type(tower).__name__ == name.replace("Model", "VisionModel")
    x = images()
    with torch.no_grad():
        assert torch.equal(extract_features(tower.eval(), x).patches, extract_features(model, x).patches)


def test_of_images_and_text_with_locat_the_whole(tmp_path):
    """Which is where its settings are."""
    host = Host("CLIPModel", "CLIPConfig", 1)
    model = host.build(LocAtConfig(prr=False))
    again = create_model(saved(model, tmp_path), pretrained=True).eval()
    x = images()
    with torch.no_grad():
        assert torch.equal(extract_features(again, x).patches, extract_features(model, x).patches)


def test_mae_for_pretraining_gives_its_encoder(tmp_path):
    config = transformers.ViTMAEConfig(**SIZES, decoder_hidden_size=12, decoder_num_attention_heads=2)
    model = stir(transformers.ViTMAEForPreTraining(config))
    encoder = create_model(saved(model, tmp_path), pretrained=True, mask_ratio=0.0).eval()
    assert type(encoder).__name__ == "ViTMAEModel"
    model.config.mask_ratio = 0.0
    x = images()
    with torch.no_grad():
        assert torch.equal(extract_features(encoder, x).patches, extract_features(model, x).patches)


def test_a_checkpoint_of_our_own(tmp_path):
    name = saved(VIT.plain(), tmp_path / "model")
    model = stir(create_model(name, locat=LocAtConfig()))
    locatvit.save_checkpoint(model, tmp_path / "weights.safetensors")
    again = build_model(ModelConfig(name, locat=LocAtConfig(), checkpoint=str(tmp_path / "weights.safetensors")))
    x = images()
    assert torch.equal(again.eval()(x), model(x))


def test_mistakes(tmp_path):
    name = saved(VIT.build(), tmp_path / "model")
    with pytest.raises(LocAtError, match="was saved with LocAt, whose settings are its own; leave locat out"):
        create_model(name, pretrained=True, locat=LocAtConfig(kernel="laplace"))
    with pytest.raises(LocAtError, match=r"hf/\./nowhere': there is no folder './nowhere'; give hf/FOLDER or hf/OWNER"):
        create_model("hf/./nowhere")
    with pytest.raises(LocAtError, match="model 'hf/': there is no folder ''"):
        create_model("hf/")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LocAtError, match="no config.json at"):
        create_model(f"hf/{tmp_path / 'empty'}")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(LocAtError, match="cannot be created with pretrained=False: .*unheard"):
        create_model(f"hf/{tmp_path / 'empty'}")
    dinov2 = saved(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), tmp_path / "dinov2")
    with pytest.raises(LocAtError, match="prr is True, but Dinov2Model has no head or pooler"):
        create_model(dinov2, locat=LocAtConfig())


def test_weights_that_are_not_its_own_are_refused(tmp_path):
    model = VIT.plain()
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        LocAtError, match="the weights of 'hf/.*' do not fit its ViTForImageClassification: vit.layers.1"
    ):
        create_model(f"hf/{tmp_path}", pretrained=True)


def test_a_hub_that_does_not_answer_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(checkpoint.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(
        LocAtError, match="cannot fetch config.json of 'nobody/nothing' from the hub .it does not answer"
    ):
        create_model("hf/nobody/nothing")
    assert time.monotonic() - start < 6


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocAtError, match="model 'hf/a/b' needs transformers; install it: pip install 'locatvit.hf.'"):
        create_model("hf/a/b")


def test_another_attention_is_an_error_and_no_silent_loss(tmp_path):
    VIT.build().save_pretrained(tmp_path)
    with pytest.raises(
        LocAtError, match="attn_implementation is 'sdpa', which knows nothing of GAug, so .* would lose it"
    ):
        load_pretrained(tmp_path, attn_implementation="sdpa")
    with pytest.raises(LocAtError, match="attn_implementation is 'eager'"):
        locatvit.load_pretrained(tmp_path, attn_implementation="eager")
    model: Any = locatvit.load_pretrained(tmp_path, attn_implementation="locat")
    for change in (
        lambda: model.set_attn_implementation("sdpa"),
        lambda: setattr(model.config, "_attn_implementation", "sdpa"),
    ):
        change()
        if any(module.config._attn_implementation == "sdpa" for module in model.modules() if hasattr(module, "gaug")):
            with pytest.raises(LocAtError, match="attn_implementation is 'sdpa', which knows nothing of GAug"):
                model(images())
        model.set_attn_implementation("locat")
    assert model(images()).logits.isfinite().all()


def test_the_library_itself_reports_what_it_drops_where_it_is_overridden(tmp_path):
    """Of the one way that asks nothing of this package, see ``load_pretrained``."""
    VIT.build().save_pretrained(tmp_path)
    plain, report = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(hasattr(module, "gaug") for module in plain.modules())
    assert sum(".gaug." in key for key in report["unexpected_keys"]) == 8


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "DINOv3ViTModel"]
)
def test_freezing(name):
    host = BY_NAME[name]
    model = host.build()
    if name == "DINOv3ViTModel":
        with pytest.raises(LocAtError, match="it is not known where the classifier of this DINOv3ViTModel is"):
            locatvit.freeze_host(model)
        return
    learning = locatvit.freeze_host(model)
    heads = {"ViTForImageClassification": {"classifier"}}.get(name, {"cls_classifier", "distillation_classifier"})
    assert {key.split(".")[0] for key in learning if ".gaug." not in key} == heads
    assert sum(".gaug." in key for key in learning) == 8
