"""Tokens of inner layers of every model, by timm's ways and by ``extract_features``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from locatvit import extract_features
from small_models import Subject, cases, stir, subjects

pytestmark = pytest.mark.usefixtures("one_thread")


def stages(model: Any) -> list[nn.Module]:
    """Blocks of a ViT, stages of Swin."""
    return list(model.layers if hasattr(model, "layers") else model.blocks)


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Of all stages, while the whole model classifies."""
    found: list[Tensor] = []
    handles = [stage.register_forward_hook(lambda _m, _args, out: found.append(out)) for stage in stages(model)]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def split(model: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The patches as a map, channels first, and the prefix."""
    prefix, patches = tokens.flatten(1, -2).tensor_split((getattr(model, "num_prefix_tokens", 0),), dim=1)
    return patches.mT.unflatten(2, grid), prefix


def grids(subject: Subject, size: tuple[int, int]) -> list[tuple[int, int]]:
    if subject.is_windowed:
        height, width = size[0] // 4, size[1] // 4
        return [(height, width), (-(-height // 2), -(-width // 2))]
    return [(-(-size[0] // 8), -(-size[1] // 8))] * 2


@cases()
def test_intermediates_are_what_the_stages_give(subject, config):
    """At a size that the model is not built for, if it takes one."""
    model = stir(subject.build(config, **subject.any_size))
    images = subject.images(*((36, 52) if subject.takes_any_size else ()))
    raw = outputs(model, images)
    final, found = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    (first,) = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    (last,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    for index, (tokens, grid) in enumerate(zip(raw, grids(subject, tuple(images.shape[-2:])), strict=True)):
        patch_map, prefix = split(model, tokens, grid)
        assert torch.equal(found[index], patch_map)
        assert torch.equal((first, last)[index], patch_map)
        features = extract_features(model, images, layer=index)
        assert features.grid_size == grid
        assert torch.equal(features.patch_map, patch_map)
        assert torch.equal(features.prefix, prefix)
        embeddings = getattr(model, "embeds", model)  # NaFlexViT keeps its [CLS] there
        assert (features.cls is None) == (getattr(embeddings, "cls_token", None) is None)


@cases(lambda subject, config: not subject.is_windowed)
def test_options_of_a_vits_intermediates(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    raw = outputs(model, images)
    normed = [model.norm(tokens) for tokens in raw]
    for options, wanted in (({}, raw), ({"norm": True}, normed)):
        found = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True, **options)
        for got, tokens in zip(found, wanted, strict=True):
            assert torch.equal(got, tokens[:, model.num_prefix_tokens :])
        if model.num_prefix_tokens:
            found = model.forward_intermediates(
                images, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC", **options
            )
            for (_, prefix), tokens in zip(found, wanted, strict=True):
                assert torch.equal(prefix, tokens[:, : model.num_prefix_tokens])


@cases(lambda subject, config: subject.is_windowed)
def test_norm_of_swins_last_intermediate(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    first, last = outputs(model, images)
    found = model.forward_intermediates(images, norm=True, intermediates_only=True)
    assert torch.equal(found[0], first.permute(0, 3, 1, 2))
    assert torch.equal(found[1], model.norm(last).permute(0, 3, 1, 2))


@subjects(lambda subject: subject.takes_masks)
def test_intermediates_under_a_mask(subject):
    model, images = stir(subject.build()), subject.images()
    length = model.num_prefix_tokens + 9
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    final, found = model.forward_intermediates(images, attn_mask=allowed, output_fmt="NLC")
    assert torch.equal(final, model.forward_features(images, attn_mask=allowed))
    (free,) = model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")
    assert not torch.allclose(found[-1], free)
