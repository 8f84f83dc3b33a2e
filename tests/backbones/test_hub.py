"""Models as folders: written, read again by this package and by timm."""

import json

import pytest
import timm
import torch

import locatvit
from locatvit import LocAtConfig, LocAtError
from locatvit.results import Result, write_result
from small_models import NAMES, image_size, small

VIT = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def stir(model):
    """Weights far from their first values, so that equal outputs mean equal weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("through", ["locatvit", "timm"])
def test_round_trip_of_our_names(name, through, tmp_path):
    model = stir(small(name, locat=LocAtConfig(kernel="laplace", start="identity", layers=(1,))))
    locatvit.save_pretrained(model, tmp_path / "model")
    if through == "timm":
        again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    else:
        again = locatvit.load_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, image_size(name), image_size(name))
    assert torch.equal(again.eval()(images), model(images))
    assert again.locat_config == model.locat_config


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("config", [None, LocAtConfig(), LocAtConfig(start="identity", alpha="learned", prr=False)])
def test_round_trip_of_another_model(name, config, tmp_path):
    model = timm.create_model(name, num_classes=7, **VIT)
    if config is not None:
        locatvit.add_locat(model, config)
    locatvit.save_pretrained(stir(model), tmp_path)
    again = locatvit.load_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(again(images), model(images))
    if config is not None:  # timm alone does not lose the bias without a word
        with pytest.raises((RuntimeError, TypeError)):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_changes_after_the_creation_are_kept(tmp_path):
    model = small("locatvit_tiny", dynamic_img_size=True)
    model.reset_classifier(9)
    locatvit.save_pretrained(stir(model), tmp_path)
    images = torch.randn(2, 3, 40, 24)
    assert torch.equal(locatvit.load_pretrained(tmp_path).eval()(images), model(images))


def test_the_card_shows_results_with_their_protocol(tmp_path):
    result = Result(
        "classification", "classification", {"name": "locatvit_tiny"}, {"name": "cifar100"}, {"top1": 0.4112},
        environment={"versions": {"locatvit": "0.1.0", "torch": "2.14"}, "date": "2026-11-20"},
    )  # fmt: skip
    locatvit.save_pretrained(small("locatvit_tiny"), tmp_path, results=[result])
    card = (tmp_path / "README.md").read_text()
    assert "| classification | cifar100 | top1 | 0.4112 | locatvit 0.1.0, torch 2.14, 2026-11-20 |" in card
    assert '"kernel": "gaussian"' in card
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "locatvit_tiny"


def test_a_folder_that_is_not_whole(tmp_path):
    with pytest.raises(LocAtError, match=r"no config.json at .*give a file, a folder with config.json, or hf-hub:"):
        locatvit.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LocAtError, match=r"config.json describes no timm model .*save_pretrained"):
        locatvit.load_pretrained(tmp_path)
    locatvit.save_pretrained(small("locatvit_tiny"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LocAtError, match="no checkpoint at"):
        locatvit.load_pretrained(tmp_path)


def test_a_model_without_a_name(tmp_path):
    with pytest.raises(LocAtError, match="this Linear does not tell its name"):
        locatvit.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'locatvit[hf]'")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=24, patch_size=8
    )
    model = stir(locatvit.add_locat(transformers.ViTForImageClassification(config)))
    result = Result("knn", "dino", {}, {"name": "cifar100"}, {"top1": 0.25}, changed={"neighbours": 5})
    write_result(tmp_path / "run", result)
    locatvit.save_pretrained(model, tmp_path, results=[tmp_path / "run"])
    card = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| dino, changed: neighbours=5 | cifar100 | top1 | 0.2500 |" in card
    assert '"kernel": "gaussian"' in card
    again = locatvit.load_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(again(images).logits, model(images).logits)
