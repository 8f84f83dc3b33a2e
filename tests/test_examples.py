"""The programs of docs/examples, on CIFAR-100 in small."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import locatvit

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cifar100(folder):
    """32 images of noise in the form of the data set's files."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(32):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"img": images, "fine_label": list(range(32))})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-0.parquet")
    return folder


def test_training_of_locat_alone(tmp_path, capsys):
    _load("train_locat_alone").main(_cifar100(tmp_path), tmp_path / "model", steps=2, image_size=32)
    printed = capsys.readouterr().out
    assert "51 of 201 tensors learn" in printed
    assert "saved and loaded, outputs equal: True" in printed
    assert float(printed.split("differ by ")[1].split()[0]) < 1e-4


@pytest.fixture
def _compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_compiler")
def test_serving_a_compiled_model(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    model = locatvit.create_model(
        "locatvit_tiny", img_size=24, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    locatvit.save_pretrained(model, tmp_path / "model")
    ratio = _load("serve_compiled").main(str(tmp_path / "model"), tmp_path / "images", turns=2)
    printed = capsys.readouterr().out
    assert ratio > 0
    assert "3 images: outputs differ by" in printed
    assert float(printed.split("differ by ")[1].split()[0]) < 1e-4
    with pytest.raises(SystemExit, match="differs by more than"):
        _load("serve_compiled").main(str(tmp_path / "model"), tmp_path / "images", turns=1, tolerance=-1.0)
