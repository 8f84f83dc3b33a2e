"""Programs: written, run without this package, compared with the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locatvit import LocAtConfig, LocAtError
from locatvit.cli.main import main
from locatvit.recipes import export as export_module
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.export import export
from locatvit.recipes.export_config import ExportConfig
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
