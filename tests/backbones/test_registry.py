"""Models by name, ours among timm's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import locatvit
from locatvit import LocAtConfig, LocAtError
from locatvit.backbones.registry import MODELS, create_plain
from locatvit.layers import LocalityAttention
from small_models import image_size, small

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
PLAIN = {"vit_tiny_patch16_rope_mixed_224"}
"""Plain partners that timm does not have."""
NAMES = PLAIN | {
    name.format(size)
    for size in ("tiny", "small", "base")
    for name in ("locatvit_{}", "locatvit_{}_reg4", "locatvit_{}_rope_mixed", "locatswin_{}", "locatjumbo_{}")
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str, **kwargs: object) -> nn.Module:
    with torch.device("meta"):  # nothing is computed or initialised here
        return timm.create_model(name, **kwargs)


def test_every_name_of_ours_is_timms() -> None:
    assert set(MODELS) == NAMES
    assert set(timm.list_models()) >= NAMES


@pytest.mark.parametrize("imports", ["import locatvit, timm", "import timm, locatvit"])
def test_timm_knows_the_names_whichever_is_imported_first(imports: str) -> None:
    code = (
        f"{imports}\nimport torch\ntorch.set_default_device('meta')\n"
        "print(type(timm.create_model('locatvit_base')).__name__, len(timm.list_models('locat*')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["VisionTransformer", str(len(NAMES) - len(PLAIN))]


COUNTS = {
    "locatvit_tiny": (5_717_416, 2_340),
    "locatvit_small": (22_050_664, 2_340),
    "locatvit_base": (86_567_656, 2_340),
    "locatvit_tiny_reg4": (5_718_952, 2_340),  # positions for registers, too
    "locatvit_tiny_rope_mixed": (5_686_504, 2_340),
    "locatswin_tiny": (28_288_354, 1_188),
    "locatswin_base": (87_768_224, 2_376),
    "locatjumbo_tiny": (17_348_776, 2_724),
    "locatjumbo_base": (260_495_080, 3_876),
}
"""Parameters of the plain model and what LocAt adds, at 1000 classes: details, section 9."""


@pytest.mark.parametrize(("name", "plain", "new"), [(name, *counts) for name, counts in COUNTS.items()])
def test_parameters_of_the_paper(name: str, plain: int, new: int) -> None:
    with torch.device("meta"):
        assert count(create_plain(name)) == plain
    assert count(on_meta(name)) == plain + new


@pytest.mark.parametrize("name", sorted(NAMES - PLAIN))
def test_plain_is_the_host_of_a_name(name: str) -> None:
    with torch.device("meta"):
        plain = create_plain(name, num_classes=7)
    with_locat = on_meta(name, num_classes=7)
    assert type(plain) is type(with_locat)
    new = set(with_locat.state_dict()) - set(plain.state_dict())
    assert new
    assert all(".gaug." in key or key.startswith("norm_patches.") for key in new)


def test_registers_by_name_and_by_keyword() -> None:
    by_name, by_keyword = on_meta("locatvit_small_reg4"), on_meta("locatvit_small", reg_tokens=4)
    shapes = {key: value.shape for key, value in by_name.state_dict().items()}
    assert shapes == {key: value.shape for key, value in by_keyword.state_dict().items()}
    assert by_name.num_prefix_tokens == by_keyword.num_prefix_tokens == 5
    assert by_name.blocks[0].attn.num_prefix_tokens == 5


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_model_runs_and_gives_gradients(name: str) -> None:
    size = image_size(name)
    model = small(name)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pretrained_cfg_is_the_authors() -> None:
    model = on_meta("locatvit_tiny", num_classes=10)
    assert model.pretrained_cfg["mean"] == model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    assert model.pretrained_cfg["crop_pct"] == 0.9
    assert model.pretrained_cfg["architecture"] == "locatvit_tiny"
    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["input_size"] == (3, 224, 224)


def has_gaug(model: nn.Module) -> bool:
    return any(isinstance(module, LocalityAttention) for module in model.modules())


def has_prr(model: nn.Module) -> bool:
    return model.global_pool == "prr"


@pytest.mark.parametrize("gaug", [True, False])
@pytest.mark.parametrize("prr", [True, False])
def test_gaug_and_prr_are_switches(gaug: bool, prr: bool) -> None:
    model = timm.create_model("locatvit_tiny", **SMALL, gaug=gaug, prr=prr)
    assert (has_gaug(model), has_prr(model)) == (gaug, prr)
    assert (model.locat_config.gaug, model.locat_config.prr) == (gaug, prr)


def test_switches_go_before_the_config_and_leave_the_rest_of_it() -> None:
    config = LocAtConfig(gaug=False, variance_scaling="area")
    model = locatvit.create_model("locatvit_tiny", **SMALL, locat=config, gaug=True)
    assert model.locat_config == LocAtConfig(gaug=True, variance_scaling="area")
    assert locatvit.create_model("locatvit_tiny", **SMALL, locat=config).locat_config == config


@pytest.mark.parametrize("kwargs", [{"no_pos_emb": True}, {"pos_embed": "none"}])
def test_without_position_embedding(kwargs: dict[str, object]) -> None:
    model = locatvit.create_model("locatvit_tiny", **SMALL, **kwargs)
    assert "pos_embed" not in model.state_dict()
    assert "cls_token" in model.state_dict()


def test_timms_own_names_stay_plain() -> None:
    assert not has_gaug(locatvit.create_model("vit_tiny_patch16_224", **SMALL))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("locatvit_tinny", r"model 'locatvit_tinny' is unknown; did you mean locatvit_tiny"),
        ("vit_tiny_patch16_244", r"is unknown; did you mean .*vit_tiny_patch16_224"),
        ("zzzzzz", r"is unknown; known: \S+ .* and \d{3,} more Ours: locatvit_tiny, "),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(LocAtError, match=message) as caught:
        locatvit.create_model(name)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"depht": 3},
            r"cannot be created with pretrained=False, .*depht=3.*: .*unexpected keyword argument 'depht'",
        ),
        ({"num_heads": 7}, r"cannot be created with .*num_heads=7"),
        ({"patch_size": 0}, r"cannot be created with .*patch_size=0"),
        ({"locat": LocAtConfig(layers=(2,))}, r"layers is \(2,\); the model's blocks are numbered 0 to 1"),
        ({"patch_drop_rate": 0.5}, r"patch_drop_rate is above 0; .* create the model with patch_drop_rate=0"),
    ],
)
def test_keywords_that_do_not_fit(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(LocAtError, match=message) as caught:
        locatvit.create_model("locatvit_tiny", **{**SMALL, **kwargs})
    assert "\n" not in str(caught.value)


def test_names_without_published_weights() -> None:
    with pytest.raises(
        LocAtError, match=r"no published weights of locatvit_small; there are of locatvit_tiny, locatvit_base"
    ):
        locatvit.create_model("locatvit_small", pretrained=True, **SMALL)
    with pytest.raises(LocAtError, match=r"'vit_tiny_patch8_224' is unknown|No pretrained weights exist"):
        locatvit.create_model("vit_base_patch16_18x2_224", pretrained=True, depth=1, embed_dim=24, num_heads=3)
