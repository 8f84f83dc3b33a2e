"""Hosts of timm's that need more than the contract: other stems, windows, sizes, projections and pools."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import locatvit
from locatvit import LocAtConfig, LocAtError
from small_models import SUBJECTS, Subject, gaugs, locality_attentions, stir

pytestmark = pytest.mark.usefixtures("one_thread")

_SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
_NAFLEX = {**_SMALL, "img_size": 24, "patch_size": 8, "pos_embed_grid_size": (3, 5)}
OTHERS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "vitamin": ("vitamin_small_224", {"img_size": 48, "depth": 1, "num_classes": 5}, (3, 3)),
    "resnet's stem": ("vit_tiny_r_s16_p8_224", {**_SMALL, "img_size": 64}, (2, 2)),
    "windows of two sizes": (
        "swin_s3_tiny_224",
        {"img_size": 96, "embed_dim": 24, "depths": (1,) * 4, "num_heads": (2, 3, 4, 6), "window_size": (3, 4, 6, 3)},
        (3, 3),
    ),
    "a gate": ("naflexvit_base_patch16_gap", {**_NAFLEX, "attn_gated": True}, (3, 5)),
    "naflex of eva's": (
        "naflexvit_base_patch16_gap", {**_NAFLEX, "attn_type": "eva"}, (3, 5)
    ),
}  # fmt: skip


def twins(model: nn.Module, images: Tensor) -> tuple[Tensor, nn.Module, nn.Module]:
    """What the host gives, it with LocAt from the identity start, and a copy of it with the paper's start."""
    stir(model)
    want, paper = model(images), locatvit.add_locat(copy.deepcopy(model))
    return want, locatvit.add_locat(model, LocAtConfig(start="identity")), paper


@pytest.mark.parametrize(("name", "kwargs", "grid"), OTHERS.values(), ids=OTHERS)
def test_identity_start_is_the_host_and_papers_is_not(name, kwargs, grid):
    images = torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"])
    want, identity, paper = twins(timm.create_model(name, **kwargs), images)
    torch.testing.assert_close(identity(images), want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(paper(images), want, rtol=1e-3, atol=1e-3)
    assert gaugs(paper)[0].trained_grid == grid
    paper(images).square().sum().backward()
    for gaug in gaugs(paper):
        assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in gaug.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # timm resamples its tables there
@pytest.mark.parametrize("name", ["beit", "beit, shared table", "relative positions", "relative positions, shared"])
def test_tables_follow_set_input_size(name):
    """To 2 x 7 patches from 3 x 3; GAug keeps the grid that it was built for as its measure."""
    host = stir(SUBJECTS[name].plain())
    model = locatvit.add_locat(SUBJECTS[name].plain(), LocAtConfig(start="identity")).eval()
    model.load_state_dict(host.state_dict(), strict=False)
    for each in (host, model):
        each.set_input_size((16, 56))
    images = torch.randn(2, 3, 16, 56)
    torch.testing.assert_close(model(images), host(images))
    assert {attention.grid_of(14) for attention in locality_attentions(model)} == {(2, 7)}
    assert {gaug.trained_grid for gaug in gaugs(model)} == {(3, 3)}


@pytest.mark.parametrize("config", [LocAtConfig(), LocAtConfig(gaug=False)], ids=["both", "PRR alone"])
def test_naflex_patches_of_unknown_grids_are_refused(config):
    model = SUBJECTS["naflex"].build(config)
    row, column = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    patches = {
        "patches": torch.randn(2, 9, 8 * 8 * 3),
        "patch_coord": torch.stack((row, column), -1).flatten(0, 1).expand(2, -1, -1),
        "patch_valid": torch.ones(2, 9, dtype=torch.bool),
    }
    assert SUBJECTS["naflex"].plain()(patches).shape == (2, 5)
    with pytest.raises(LocAtError, match="patch_coord is given, .* give the model images"):
        model(patches)


@pytest.mark.parametrize("name", ["siglip", "attention pool beside registers", "perception encoder"])
def test_attention_pools_read_refined_tokens(name):
    """PRR by hand, over all tokens, then the host's own head."""
    subject: Subject = SUBJECTS[name]
    model = stir(subject.build(LocAtConfig(gaug=False)))
    host, images = subject.host_of(model), subject.images()
    tokens = host.forward_features(images)
    heads = tokens.unflatten(-1, (3, 8)).transpose(1, 2)
    refined = ((heads @ heads.mT / 8**0.5).softmax(-1) @ heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(model(images), host.forward_head(refined))
    assert set(model.state_dict()) == set(host.state_dict())


@pytest.mark.parametrize("name", ["beit", "relative positions, class token"])
def test_another_pooling_takes_prrs_place(name):
    """As timm does with its own attention pools."""
    subject = SUBJECTS[name]
    model = stir(subject.build(LocAtConfig(gaug=False)))
    host, images = subject.host_of(model), subject.images()
    for each in (model, host):
        each.reset_classifier(5, global_pool="token")
    host.head.load_state_dict(model.head.state_dict())
    assert torch.equal(model(images), host(images))
