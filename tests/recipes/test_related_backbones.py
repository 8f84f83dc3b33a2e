"""The backbones of other libraries and of the paper's Table 6, through the code path of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import locatvit
from locatvit import LocAtConfig
from locatvit.analysis.cost import count
from locatvit.cli.main import main

SCENES = (
    "--data.name", "scenes",
    "--data.train_options", "{num_images: 16, image_size: 32, cache: true}",
    "--data.val_options", "{num_images: 4, image_size: 32, cache: true}",
    "--augment.short_side", "32", "--augment.crop_size", "[32, 32]",
    "--protocol.num_updates", "5", "--protocol.batch_size", "4", "--protocol.num_workers", "0",
)  # fmt: skip


def segment(run_dir: Path, *model: str) -> float:
    assert main(["segment", "--run_dir", str(run_dir), *model, *SCENES]) == 0
    from locatvit.results import read_result

    return read_result(run_dir).metrics["miou"]


@pytest.fixture
def dinov2(tmp_path: Path) -> str:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'locatvit[hf]'")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=24, patch_size=8, num_labels=5
    )
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path / "dinov2")
    return f"hf/{tmp_path / 'dinov2'}"


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (
            "twins_svt_small",
            "{img_size: 64, embed_dims: [8, 16, 24, 32], depths: [1, 1, 1, 1], num_heads: [1, 2, 2, 4]}",
        ),
        ("convit_tiny", "{img_size: 48, patch_size: 8, embed_dim: 8, depth: 2, num_heads: 4, local_up_to_layer: 1}"),
    ],
)
def test_segment_takes_the_paper_s_other_backbones(name, kwargs, tmp_path):
    assert 0 <= segment(tmp_path / "run", "--model.name", name, "--model.kwargs", kwargs) <= 1


GCVIT = (
    "--model.name", "gcvit_xxtiny",
    "--model.kwargs", "{img_size: 32, window_ratio: [8, 8, 16, 32], embed_dim: 8}",
)  # fmt: skip


def test_segment_takes_gcvit_where_it_sees_its_own_size_alone(tmp_path, capsys):
    windows = ("--protocol.protocol", "linear", "--protocol.window_size", "32", "--protocol.window_stride", "16")
    own = ("--protocol.norm", "false", "--augment.mean", "[0.5, 0.5, 0.5]", "--augment.std", "[0.5, 0.5, 0.5]")
    assert 0 <= segment(tmp_path / "run", *GCVIT, *windows, *own) <= 1
    capsys.readouterr()
    assert main(["segment", "--run_dir", str(tmp_path / "whole"), *GCVIT, *SCENES]) == 2
    assert "GlobalContextVit cannot be switched to other image sizes" in capsys.readouterr().err


@pytest.mark.parametrize("locat", [(), ("--model.locat.kernel", "laplace")], ids=["plain", "LocAt"])
def test_segment_takes_transformers_models(locat, dinov2, tmp_path):
    assert 0 <= segment(tmp_path / "run", "--model.name", dinov2, "--model.pretrained", "true", *locat) <= 1


@pytest.mark.slow
def test_profile_takes_transformers_models(dinov2, capsys):
    assert main(["profile", "--model.name", dinov2, "--batch_size", "2", "--seconds", "0.1", "--backward", "true"]) == 0
    assert "multiply-adds" in capsys.readouterr().out


def test_profile_tells_the_backends_of_transformers_models(dinov2, capsys):
    assert main(["profile", "--backends", "--model.name", dinov2, "--batch_size", "2", "--backward", "true"]) == 0
    assert "2 attentions, 3 x 3 + 1 tokens" in capsys.readouterr().out


def test_a_transformers_model_costs_as_much_as_timms(dinov2):
    """The same ViT in both libraries: products of the same sizes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=5)
    theirs = locatvit.add_locat(transformers.ViTForImageClassification(config))
    ours = locatvit.create_model(
        "locatvit_tiny", img_size=24, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    assert count(theirs, (24, 24)) == count(ours, (24, 24))


@pytest.mark.parametrize("backend", ["flex", "reference", "triton"])
def test_the_count_is_the_same_whatever_backend_is_asked_for(backend):
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    models = [
        locatvit.create_model("locatvit_tiny", **sizes, locat=LocAtConfig(backend=name)) for name in ("auto", backend)
    ]
    assert count(models[1], (24, 24)) == count(models[0], (24, 24))
    assert {block.attn.backend for block in models[1].blocks} == {backend}
    if backend == "reference":
        assert models[1](torch.randn(1, 3, 24, 24)).isfinite().all()
