"""Models of timm that LocAt cannot go into: each is told why."""

from __future__ import annotations

import re
import sys

import pytest
import timm
import torch

import locatvit
from locatvit import LocAtError
from locatvit.backbones.refusals import REASONS

NAMES = [
    "cait_xxs24_224", "xcit_nano_12_p8_224", "davit_tiny", "convit_tiny", "mvitv2_tiny", "levit_128s",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "efficientformer_l1", "efficientformerv2_s0", "efficientvit_b0",
    "efficientvit_l1", "efficientvit_m0", "pvt_v2_b0", "twins_svt_small", "coat_tiny", "crossvit_tiny_240",
    "tnt_s_patch16_224", "volo_d1_224", "nest_tiny", "coatnet_0_224", "gcvit_xxtiny", "hiera_tiny_224",
    "hieradet_small", "samvit_base_patch16", "visformer_tiny", "edgenext_xx_small", "nextvit_small", "tiny_vit_5m_224",
    "fastvit_t8", "caformer_s18", "focalnet_tiny_srf", "mixer_s32_224", "deepseek_vit_412m", "gemma4_vit_167m",
    "qwen3_vit_88m", "pit_ti_224", "swiftformer_xs", "mobilenetv5_base", "shvit_s1", "iformer_t", "lowformer_b0",
    "csatv2",
]  # fmt: skip
"""One model of each class that has a reason."""


@pytest.mark.parametrize("name", NAMES)
def test_the_reason_is_told_in_one_line(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__name__ in REASONS]
    assert kinds, f"{type(model).__name__} has no reason"
    before = str(model)
    message = re.escape(f"add_locat cannot serve {type(model).__name__}: {REASONS[kinds[0]]}; it knows our Jumbo")
    with pytest.raises(LocAtError, match=message) as caught:
        locatvit.add_locat(model)
    assert "\n" not in str(caught.value)
    assert str(model) == before


def test_every_reason_names_a_class_of_timms():
    modules = [module for name, module in sys.modules.items() if name.startswith("timm.")]
    assert {name for name in REASONS if any(hasattr(module, name) for module in modules)} == set(REASONS)
