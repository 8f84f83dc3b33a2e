"""What the run of dense retrieval is made of: the memory's size, the backbone's layer and normalisation, stages."""

from __future__ import annotations

import io

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from locatvit.errors import LocAtError
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.recipes.backbone import last_fine_layer, own_normalisation
from locatvit.recipes.hummingbird_memory import check_memory, memory_rows
from locatvit.recipes.stages import Stages


def test_the_rows_of_a_memory() -> None:
    assert memory_rows(HummingbirdConfig(), 10, 196) == (None, 1960)
    assert memory_rows(HummingbirdConfig(augmentation_epochs=3), 10, 196) == (None, 5880)
    assert memory_rows(HummingbirdConfig(memory_size=1959, augmentation_epochs=2), 10, 196) == (97, 1940)
    assert memory_rows(HummingbirdConfig(memory_size=5000), 10, 196) == (None, 1960)
    with pytest.raises(LocAtError, match="memory_size is 30, less than a patch for each of 16 training images in 2 ep"):
        memory_rows(HummingbirdConfig(memory_size=30, augmentation_epochs=2), 16, 196)


def test_a_memory_that_is_too_large_is_refused_and_the_size_that_fits_is_told() -> None:
    # VOC: 10,582 x 196 rows of 768 + 21 numbers, 4 bytes each
    voc = HummingbirdConfig(max_memory_gib=4)
    with pytest.raises(
        LocAtError, match=r"the memory of 2,074,072 patches, 768 \+ 21 numbers each, takes 6.1 GiB with"
    ):
        check_memory(voc, 2_074_072, 10_582, 768, 21)
    fits = 4 * 2**30 // (4 * 789) // 10_582 * 10_582
    with pytest.raises(LocAtError, match=f"set memory_size to {fits} or less"):
        check_memory(voc, 2_074_072, 10_582, 768, 21)
    _, rows = memory_rows(HummingbirdConfig(memory_size=fits), 10_582, 196)
    check_memory(voc, rows, 10_582, 768, 21)
    with pytest.raises(LocAtError, match="takes .* GiB with faiss"):
        check_memory(HummingbirdConfig(max_memory_gib=4, backend="faiss"), rows, 10_582, 768, 21)
    with pytest.raises(LocAtError, match="takes .* GiB with torch; raise max_memory_gib"):
        check_memory(HummingbirdConfig(max_memory_gib=1e-6), 1000, 10_582, 768, 21)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("test_vit", {}, -1),
        ("test_convnext", {}, -2),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, -2),
        ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 32}, -1),
    ],
)
def test_the_layer_that_is_read(name: str, options: dict, layer: int) -> None:
    """The paper reads a ViT's last block and Swin's third stage, 14 x 14 patches of both."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    assert last_fine_layer(model) == layer


def test_the_normalisation_of_a_model() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    told = model.pretrained_cfg
    assert own_normalisation(model, None) == (tuple(told["mean"]), tuple(told["std"]))
    assert own_normalisation(nn.Linear(2, 2), None) is None
    assert last_fine_layer(nn.Linear(2, 2)) == -1


def test_stages_print_a_line_each_where_there_is_no_terminal() -> None:
    written = io.StringIO()
    with Stages("run [1]", console=Console(file=written)) as stages:
        told = stages.begin("memory", 3)
        for done in range(1, 4):
            told(done)
        stages.end("12 patches [/]")
        stages.begin("queries", 2)(2)
        stages.end("mIoU 50 %")
    assert written.getvalue() == "run [1]: memory: 12 patches [/]\nrun [1]: queries: mIoU 50 %\n"
