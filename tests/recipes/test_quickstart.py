import re

import pytest

from locatvit.errors import LocAtError
from locatvit.recipes.quickstart_config import QuickstartConfig


def test_twins_differ_in_locat_alone(tmp_path):
    (vit, vit_head), (locat, locat_head) = QuickstartConfig(run_dir=tmp_path).runs()
    assert vit.model.locat is None
    assert locat.model.locat is not None
    assert vit.training == locat.training
    assert vit.data == locat.data
    assert vit.augment == locat.augment
    assert vit_head.protocol == locat_head.protocol
    assert vit_head.backbone == vit.run_dir


def test_every_seed_trains_every_variant(tmp_path):
    config = QuickstartConfig(run_dir=tmp_path, seeds=(3, 5), variants=("vit", "gaug", "prr"))
    runs = config.runs()
    assert len({training.run_dir for training, _ in runs}) == 6
    assert [training.training.seed for training, _ in runs] == [3, 3, 3, 5, 5, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ("vti",)}, "variants has 'vti'; known: vit, locatvit, gaug, prr"),
        ({"seeds": ()}, "seeds is empty"),
        ({"num_images": 10}, "num_images is 10; it must be at least 64"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(LocAtError, match=message):
        QuickstartConfig(**settings)


@pytest.mark.slow
def test_from_nothing_to_a_page_and_again(tmp_path):
    from locatvit.recipes.quickstart import quickstart

    config = QuickstartConfig(run_dir=tmp_path, epochs=1, num_images=64, head_updates=6)
    results, page = quickstart(config)
    assert [result.task for result in results] == ["classification", "segmentation"] * 2
    assert all(0 <= result.metrics["top1"] <= 1 for result in results if result.task == "classification")
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 3
    assert not re.search(r"""(src|href)=["']https?:""", html)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in config.variants]
    again, _ = quickstart(config)
    assert [result.metrics for result in again] == [result.metrics for result in results]
    assert weights == [(tmp_path / name / "model.safetensors").read_bytes() for name in config.variants]
