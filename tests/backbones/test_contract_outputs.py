"""What every model computes with every variant, beside its host."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import locatvit
from locatvit import LocAtConfig
from locatvit.layers.attention import Terms
from locatvit.ops.attention import reference
from small_models import Subject, cases, gaugs, gradients, locality_attentions, stir, subjects

pytestmark = pytest.mark.usefixtures("one_thread")


def names_of_unread(subject: Subject, config: LocAtConfig, model: nn.Module) -> set[str]:
    """The last block's weights of GAug, of a model whose head reads [CLS] alone."""
    if subject.reads_patches(config):
        return set()
    return {name for name, _ in model.named_parameters() if name.startswith("blocks.1.attn.gaug.")}


@cases()
def test_outputs_are_finite_and_every_gaug_learns(subject, config):
    """Without PRR, the last GAug of a model that reads [CLS] alone gets a gradient of exactly zero."""
    model = stir(subject.build(config)).train()
    logits = model(subject.images())
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    unread = names_of_unread(subject, config, model)
    for name, parameter in model.named_parameters():
        if ".gaug." in name:
            assert bool((parameter.grad == 0).all()) == (name in unread), name


@cases()
def test_an_image_does_not_see_its_neighbours(subject, config):
    model, images = stir(subject.build(config)).double(), subject.images(batch=3).double()
    apart = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), apart)
    assert not torch.allclose(apart[0], apart[1])


@cases(lambda subject, config: config.position_embedding)
def test_it_differs_from_its_host_unless_switched_off(subject, config):
    model, images = stir(subject.build(config)), subject.images()
    pools = config.pooling == "avg" and subject.on_meta.global_pool != "avg"
    same = torch.equal(model(images), subject.host_of(model)(images))
    assert same == (not config.gaug and not config.prr and not pools)


def begun(subject: Subject, config: LocAtConfig) -> tuple[nn.Module, nn.Module]:
    """A model whose LocAt has its initial values and whose host has not, and the host."""
    host = stir(subject.plain())
    model = subject.build(config).eval()
    model.load_state_dict(host.state_dict(), strict=False)
    return model, host


def leaves_the_host(config: LocAtConfig) -> bool:
    """Whether a bias of zero gives the host as it was."""
    return config.alpha == "learned" and config.position_embedding and config.pooling == "host"


@cases(lambda subject, config: leaves_the_host(config))
def test_alpha_zero_gives_the_hosts_output(subject, config):
    model, host = begun(subject, replace(config, prr=False, start="paper"))
    for gaug in gaugs(model):
        nn.init.zeros_(gaug.log_alpha.weight)
        nn.init.constant_(gaug.log_alpha.bias, -200.0)
    images = subject.images()
    torch.testing.assert_close(model(images), host(images))


@cases(lambda subject, config: leaves_the_host(config) and subject.on_meta.global_pool != "prr")
def test_identity_start_gives_the_hosts_output_and_learns(subject, config):
    """What a zero hides at first has a gradient as soon as the zero has moved: the gate, then alpha, then variance.

    In float64: the first steps of alpha can be smaller than float32's spacing about softplus(0), which it subtracts.
    """
    model, host = (each.double() for each in begun(subject, replace(config, start="identity")))
    images, cotangent = subject.images().double(), torch.randn(2, 5)
    torch.testing.assert_close(model(images), host(images))
    of_locat = [name for name, _ in model.named_parameters() if ".gaug." in name or name.endswith(".gate")]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(3):
        found = gradients(model, images, cotangent)
        learning = [name for name in of_locat if (found[name] != 0).any()]
        assert bool(learning) == bool(of_locat), step
        optimizer.step()
    assert set(of_locat) - set(learning) == names_of_unread(subject, config, model)


@subjects()
def test_switched_off_nothing_changes(subject):
    model, host = begun(subject, LocAtConfig(gaug=False, prr=False))
    images = subject.images()
    assert list(model.state_dict()) == list(host.state_dict())
    assert str(model) == str(host)
    assert torch.equal(model(images), host(images))


@subjects()
def test_patches_are_not_refined(subject):
    """PRR belongs to the head: dense features are read before it."""
    model, host = begun(subject, LocAtConfig(gaug=False))
    images = subject.images()
    got, want = (locatvit.extract_features(each, images) for each in (model, host))
    assert torch.equal(got.patches, want.patches)
    assert torch.equal(got.prefix, want.prefix)
    first = getattr(model, "num_prefix_tokens", 0)
    normed, normed_of_host = (each.forward_features(images)[:, first:] for each in (model, host))
    if hasattr(model, "norm_patches"):
        normed_of_host = model.norm_patches(normed_of_host)
    assert torch.equal(normed, normed_of_host)


def attended(model: nn.Module, images: Tensor) -> list[tuple[Any, Terms, Tensor, Tensor]]:
    """Each attention with GAug, what it was made of, its weights and what it gave."""
    found: list[tuple[Any, Terms, Tensor, Tensor]] = []

    def keep(attention: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        found.append((attention, attention.terms(*args, **kwargs), attention.attention_weights(*args, **kwargs), out))

    for attention in locality_attentions(model):
        attention.register_forward_hook(keep, with_kwargs=True)
    model(images)
    return found


@cases(lambda subject, config: config.gaug)
def test_patches_get_their_bias_and_prefix_tokens_none(subject, config):
    """By the logarithms of the weights, which are the logits but for a constant of each row."""
    model = stir(subject.build(config)).double()
    for attention, terms, weights, out in attended(model, subject.images().double()):
        first, bias = attention.num_prefix_tokens, terms.bias
        if not isinstance(bias, Tensor):
            row, column = bias.factors()
            bias = (row[..., :, None] * column[..., None, :]).flatten(-2)
        plain = reference.attention_weights(
            terms.q, terms.k, None, None, num_prefix_tokens=first, attn_bias=terms.attn_bias
        )
        added = weights.log() - plain.log()
        torch.testing.assert_close(added[:, :, :first], torch.zeros_like(added[:, :, :first]))
        got, want = added[:, :, first:], F.pad(bias, (first, 0))
        torch.testing.assert_close(got - got[..., :1], want - want[..., :1])
        values = (weights @ terms.v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(out, attention.proj(getattr(attention, "norm", nn.Identity())(values)))
        if config.start == "paper":
            assert (bias > 0).all()
            assert (bias.argmax(-1) == torch.arange(bias.shape[-1])).all()


def check_dropout(subject: Subject, config: LocAtConfig, kind: str) -> None:
    """It acts in training alone."""
    model, images = stir(subject.build(config, **{kind: 0.5})), subject.images()
    without = subject.build(config).eval()
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(images), without(images))
    model.train()
    assert not torch.allclose(model(images), model(images))
    assert all(gradient.isfinite().all() for gradient in gradients(model, images).values())


@cases()
def test_dropout_of_attention(subject, config):
    check_dropout(subject, config, "attn_drop_rate")


@subjects()
def test_dropout_of_the_projection(subject):
    check_dropout(subject, LocAtConfig(), "proj_drop_rate")


HIDDEN = (2, 7)
"""Patches of the 3 x 3 that the masks hide."""


def hiding(subject: Subject, model: Any) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Two batches that differ in the hidden patches alone, the mask that hides them, and the tokens that are left."""
    images = subject.images().double()
    others = images.clone()
    for patch in HIDDEN:
        row, column = 8 * (patch // 3), 8 * (patch % 3)
        others[:, :, row : row + 8, column : column + 8] = torch.randn(2, 3, 8, 8)
    hidden = [model.num_prefix_tokens + patch for patch in HIDDEN]
    length = model.num_prefix_tokens + 9
    allowed = torch.ones(length, length, dtype=torch.bool)
    allowed[:, hidden] = False
    return images, others, allowed, [token for token in range(length) if token not in hidden]


def forms(allowed: Tensor) -> list[Tensor]:
    """The same mask as a term to add, for each image, for each head, and of one row for all."""
    additive = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    return [additive, additive.expand(2, 1, -1, -1), allowed.expand(2, 3, -1, -1), allowed[:1].expand(2, 1, -1, -1)]


@cases(lambda subject, config: subject.takes_masks)
def test_a_mask_hides_patches_from_the_other_tokens(subject, config):
    model = stir(subject.build(replace(config, prr=False))).double()
    images, others, allowed, left = hiding(subject, model)

    def tokens(batch: Tensor, mask: Tensor | None) -> Tensor:
        return model.forward_features(batch, attn_mask=mask)[:, left]

    want = tokens(images, allowed)
    torch.testing.assert_close(tokens(others, allowed), want)
    assert not torch.allclose(tokens(others, None), tokens(images, None))
    for mask in forms(allowed):
        torch.testing.assert_close(tokens(images, mask), want)


@pytest.mark.parametrize("prr", [False, True], ids=["GAug alone", "with PRR"])
@subjects(lambda subject: subject.takes_masks and subject.on_meta.global_pool == "token")
def test_a_mask_hides_patches_from_the_head(subject, prr):
    model = stir(subject.build(LocAtConfig(prr=prr))).double()
    images, others, allowed, _ = hiding(subject, model)
    want = model(images, attn_mask=allowed)
    torch.testing.assert_close(model(others, attn_mask=allowed), want)
    for mask in forms(allowed):
        torch.testing.assert_close(model(images, attn_mask=mask), want)
    free = model(images)
    assert not torch.allclose(free, want)
    assert torch.equal(free, copy.deepcopy(model)(images))
