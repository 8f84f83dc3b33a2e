"""Programs: written, run without this package, compared with the model."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import locatvit
from locatvit import LocAtConfig, LocAtError
from locatvit.cli.main import main
from locatvit.evaluation.extract import accept_any_size
from locatvit.recipes import export as export_module
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.export import export
from locatvit.recipes.export_config import ExportConfig
from locatvit.recipes.run import build_model
from small_models import image_size, small_kwargs

FAMILIES = ("locatvit_tiny", "locatswin_tiny", "locatvit_tiny_rope_mixed", "locatjumbo_tiny")


def _config(name: str, output: Path, **more: object) -> ExportConfig:
    locat = LocAtConfig(kernel=more.pop("kernel", "gaussian"))
    return ExportConfig(ModelConfig(name, small_kwargs(name), locat=locat), output, **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runs_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'locatvit[export]'")
    torch.manual_seed(0)
    found = export(_config(name, tmp_path / "model.onnx"))
    assert found.difference < 1e-5
    assert len(found.batches) == 3
    session = onnxruntime.InferenceSession(str(found.path))
    size = image_size(name)
    images = np.zeros((7, 3, size, size), np.float32)
    assert session.run(None, {"images": images})[0].shape == (7, 5)


@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_of_torch(name, kernel, tmp_path):
    found = export(_config(name, tmp_path / "model.pt2", kernel=kernel))
    assert found.num_bytes == (tmp_path / "model.pt2").stat().st_size
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.zeros(5, 3, image_size(name), image_size(name))).shape == (5, 5)


def test_real_images_and_one_at_a_time(tmp_path):
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    config = _config("locatvit_tiny", tmp_path / "model.pt2", images=tmp_path, dynamic_batch=False)
    found = export(config)
    assert (found.batches, found.compared_on) == ((1,), f"3 of {tmp_path}")


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(export_module._WRITERS, ".pt2", lambda *_: lambda images: torch.ones(len(images), 5))
    with pytest.raises(LocAtError, match=r"the program differs from locatvit_tiny by .* it was not kept"):
        export(_config("locatvit_tiny", tmp_path / "model.pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "locatvit_tiny",
        pytest.param("locatvit_tiny_rope_mixed", marks=pytest.mark.slow),
        pytest.param("locatjumbo_tiny", marks=pytest.mark.slow),
    ],
)
def test_a_program_for_every_size(name, tmp_path):
    torch.manual_seed(0)
    found = export(_config(name, tmp_path / "model.pt2", dynamic_size=True))
    assert found.sizes == ((24, 24), (32, 40), (48, 16))
    assert found.difference < 1e-5
    torch.manual_seed(0)
    model = accept_any_size(build_model(_config(name, tmp_path / "other.pt2").model)).eval()
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(3, 3, 64, 88)
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images))


def test_onnx_for_every_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'locatvit[export]'")
    found = export(_config("locatvit_tiny", tmp_path / "model.onnx", dynamic_size=True, kernel="laplace"))
    assert found.difference < 1e-5
    session = onnxruntime.InferenceSession(str(found.path))
    for size in ((24, 24), (50, 90), (17, 30)):
        assert session.run(None, {"images": np.zeros((2, 3, *size), np.float32)})[0].shape == (2, 5)


@pytest.mark.slow
def test_onnx_of_a_transformers_model_for_every_size(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'locatvit[export]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'locatvit[hf]'")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=24, patch_size=8, num_labels=5
    )
    locatvit.add_locat(transformers.Dinov2ForImageClassification(config)).save_pretrained(tmp_path / "model")
    model = ModelConfig(f"hf/{tmp_path / 'model'}", pretrained=True)
    found = export(ExportConfig(model, tmp_path / "model.onnx", dynamic_size=True))
    assert found.sizes == ((24, 24), (32, 40), (48, 16))
    assert found.difference < 1e-5
    with pytest.raises(LocAtError, match="the program of hf/.* refuses 1 images of 24 x 24 pixels .* the other format"):
        export(ExportConfig(model, tmp_path / "model.pt2", dynamic_size=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("locatswin_tiny", "dynamic_size is True, but locatswin_tiny attends in windows, .*: leave it out"),
        ("beit_base_patch16_224", "dynamic_size is True, but Beit cannot be switched to other image sizes"),
        ("vit_small_patch16_rope_224", "dynamic_size is True, but Eva cannot be switched to other image sizes"),
    ],
)
def test_hosts_of_one_size_are_refused(name, message, tmp_path):
    config = ExportConfig(ModelConfig(name, small_kwargs(name)), tmp_path / "model.pt2", dynamic_size=True)
    with pytest.raises(LocAtError, match=message):
        export(config)
    assert list(tmp_path.iterdir()) == []


def test_what_the_exporter_refuses_is_told(tmp_path, monkeypatch):
    class Branches(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))

    monkeypatch.setattr(export_module, "build_model", lambda config: Branches())
    with pytest.raises(LocAtError, match=r"locatvit_tiny cannot be exported to .pt2 \(.*data-dependent"):
        export(_config("locatvit_tiny", tmp_path / "model.pt2"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(program, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(export_module._WRITERS, ".pt2", full)
    with pytest.raises(LocAtError, match="cannot write .*model.pt2: No space left on device; .* Free some space"):
        export(_config("locatvit_tiny", tmp_path / "model.pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "model.pb"], "output is model.pb; it must end in .onnx, or .pt2"),
        (["--tolerance", "0"], "tolerance is 0.0; it must be a number > 0"),
        (["--model.name", "locatvit_tinny"], "model 'locatvit_tinny' is unknown; did you mean"),
        (["--run", "nowhere"], "nowhere is no finished training run"),
        (["--output", "m.pt2", "--images", "nowhere"], "images is nowhere, where there is no image"),
    ],
)
def test_wrong_words(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
