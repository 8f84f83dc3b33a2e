"""The weights of every model with every variant: names, copies, another head, another device or precision."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import locatvit
from locatvit import LocAtConfig
from locatvit.layers import PatchRefinement
from small_models import NAMES, cases, families, gaugs, small, stir

pytestmark = pytest.mark.usefixtures("one_thread")


def names_of_gaug(host: nn.Module, config: LocAtConfig) -> set[str]:
    """The keys that GAug brings into a host."""
    attentions = [name for name, _ in host.named_modules() if name.endswith(".attn")]
    chosen = [name for index, name in enumerate(attentions) if config.layers is None or index in config.layers]
    parts = ["log_var"] * isinstance(config.variance, str) + ["log_alpha"] * (config.alpha == "learned")
    return {
        f"{attention}.gaug.{part}.{kind}"
        for attention in chosen * config.gaug
        for part in parts
        for kind in ("weight", "bias")
    }


@cases()
def test_host_weights_load_and_only_gaug_is_new(subject, config):
    host, model = subject.plain(), subject.plain()
    assert locatvit.add_locat(model, config) is model
    assert type(model) is type(host)
    assert model.locat_config == config
    keys = model.load_state_dict(host.state_dict(), strict=False)
    assert keys.unexpected_keys == [] if config.position_embedding else ["pos_embed"]
    missing = set(keys.missing_keys)
    of_gaug = names_of_gaug(host, config)
    assert of_gaug <= missing
    rest = {name for name in missing - of_gaug if not name.startswith("norm_patches.")}
    gated = config.start == "identity" and config.prr
    assert len(rest) == gated
    assert all(name.endswith(".gate") for name in rest)
    if "norm_patches.weight" in missing:
        assert config.prr
        assert hasattr(host, "norm_patches")


@cases()
def test_weights_survive_the_round_trip(subject, config):
    one, other, images = stir(subject.build(config)), stir(subject.build(config)), subject.images()
    assert not torch.allclose(one(images), other(images))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))


def ties(model: nn.Module) -> list[list[str]]:
    """The names of each tensor."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return list(found.values())


@cases()
def test_copies_are_equal_and_apart(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    want = model(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), want)
        assert ties(other) == ties(model)
        assert other.locat_config == config
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.fill_(0.1)
        assert not torch.allclose(other(images), want)
    assert torch.equal(model(images), want)


def refinements(model: nn.Module) -> list[PatchRefinement]:
    return [module for module in model.modules() if isinstance(module, PatchRefinement)]


@cases()
def test_another_head_keeps_locat(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    before = gaugs(model) + refinements(model)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert [id(each) for each in gaugs(model) + refinements(model)] == [id(each) for each in before]
    assert torch.equal(model.forward_head(model.forward_features(images), pre_logits=True), features)
    model.reset_classifier(0)
    assert torch.equal(model(images), features)
    headless = subject.build(config, num_classes=0).eval()
    headless.load_state_dict(model.state_dict())
    assert torch.equal(headless(images), features)


@cases()
def test_new_weights_follow_the_precision(subject, config):
    for dtype in (torch.float64, torch.bfloat16):
        model = locatvit.add_locat(subject.plain().to(dtype), config)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model(subject.images().to(dtype)).dtype == dtype


@cases()
def test_built_without_memory_and_filled_later(subject, config):
    """On the meta device, then with memory and the weights of a model that was built on the CPU."""
    model, images = stir(subject.build(config)), subject.images()
    with torch.device("meta"):
        empty = subject.build(config).eval()
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.to_empty(device="cpu")
    for module in empty.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # timm's word for what no checkpoint has
            module.init_non_persistent_buffers()
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(images), model(images))


@families
def test_runs_without_memory(subject):
    with torch.device("meta"):
        model, images = subject.build(), subject.images()
    assert model(images).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_device_and_precision_are_keywords_of_every_name(name):
    model = small(name, device="meta", dtype=torch.bfloat16)
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    assert kinds == {("meta", torch.bfloat16)}
