"""Counting, against formulas by hand and the dense reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import locatvit
from locatvit import LocAtConfig, LocAtError
from locatvit.analysis import cost
from locatvit.analysis.cost import Cost, count
from small_models import FAMILIES, Subject, cases, families

VIT = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 28, "depth": 2, "num_heads": 2, "num_classes": 7}
SIZE, PATCHES, WIDTH, DEPTH, HEADS = (24, 40), 3 * 5, 28, 2, 2


def vit_by_hand(num_prefix_tokens: int) -> int:
    """Multiply-adds of ``VIT``; every layer with a bias has one term more for each output."""
    tokens = PATCHES + num_prefix_tokens
    patch_embedding = PATCHES * WIDTH * (3 * 8 * 8)  # torch's formula of convolutions has no bias
    linear = tokens * (3 * WIDTH + WIDTH + 4 * WIDTH) * (WIDTH + 1) + tokens * WIDTH * (4 * WIDTH + 1)
    attention = 2 * tokens * tokens * WIDTH
    return patch_embedding + DEPTH * (linear + attention) + 7 * (WIDTH + 1)


class Layers(nn.Module):
    """One of each kind, and a module that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.first = nn.Linear(11, 11)
        self.again = self.first
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(self.norm(self.conv(x)))).softmax(-1)


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] if x.sum().item() > 0 else x


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def test_layers_by_hand() -> None:
    """7 x 13 pixels become 5 x 11 by the convolution: 5 channels of 5 rows of 11, twice through 11 x 11 and a bias."""
    found = count(Layers(), (7, 13))
    products = 5 * 11 * 5 * (3 * 3 * 3) + 2 * (5 * 5) * 11 * (11 + 1)
    assert found == Cost(5 * 27 + 11 * 12 + 2 * 5, products, products)


@pytest.mark.parametrize("registers", [0, 4])
def test_vit_by_hand(registers: int) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **VIT, reg_tokens=registers)
    found = count(model, SIZE)
    assert found.multiply_adds == found.paper_multiply_adds == vit_by_hand(1 + registers)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_locat_by_hand() -> None:
    """GAug's linear layers are N K 3 a head and PRR is 2 L D a row (details, section 9)."""
    plain, tokens = vit_by_hand(num_prefix_tokens=1), PATCHES + 1
    gaug = DEPTH * PATCHES * WIDTH * 3
    biases = DEPTH * PATCHES * HEADS * 3  # counted or not, as torch multiplies
    found = count(locatvit.create_model("locatvit_tiny", **VIT), SIZE)
    one_row, all_rows = 2 * tokens * WIDTH, 2 * tokens * tokens * WIDTH
    assert plain + gaug + one_row <= found.multiply_adds <= plain + gaug + one_row + biases
    assert found.paper_multiply_adds - found.multiply_adds == all_rows - one_row
    assert found.parameters - count(timm.create_model("vit_tiny_patch16_224", **VIT), SIZE).parameters == DEPTH * 3 * 15


def test_refinement_that_the_head_reads_in_full_is_no_different() -> None:
    averaged = locatvit.create_model("locatvit_tiny", **VIT, global_pool="avg")
    without = locatvit.create_model("locatvit_tiny", **VIT, global_pool="avg", locat=LocAtConfig(prr=False))
    found = count(averaged, SIZE)
    assert found.multiply_adds == found.paper_multiply_adds
    assert found.multiply_adds - count(without, SIZE).multiply_adds == 2 * (PATCHES + 1) ** 2 * WIDTH


def test_the_cpus_own_attention_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its formula both products of every block would be missing, and what GAug predicts from."""
    model = locatvit.create_model("locatvit_tiny", **VIT)
    whole = count(model, SIZE).multiply_adds
    monkeypatch.delitem(cost._FORMULAS, torch.ops.locatvit.pieces_forward)
    missing = DEPTH * (2 * (PATCHES + 1) ** 2 * WIDTH + 3 * PATCHES * (WIDTH + HEADS))
    assert whole - count(model, SIZE).multiply_adds == missing


@cases(lambda subject, config: config.backend == "auto")
def test_the_fast_way_counts_as_the_dense_one(subject: Subject, config: LocAtConfig) -> None:
    size = subject.images().shape[-2:]
    with torch.device("meta"):
        fast, dense = subject.build(config), subject.build(replace(config, backend="reference"))
    assert count(fast, size) == count(dense, size)


@families
def test_a_model_is_as_it_was(subject: Subject) -> None:
    model, images = subject.build().train(), subject.images()
    model.head.eval()
    before, modes = dict(tensors(model)), [module.training for module in model.modules()]
    found = count(model, images.shape[-2:])
    after = dict(tensors(model))
    assert after.keys() == before.keys()
    assert all(value is after[name] for name, value in before.items())
    assert not any(isinstance(value, FakeTensor) for value in after.values())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules() if "Refine" in type(module).__name__)
    # what the layers keep between passes was not left behind by a pass without values
    model.eval()
    logits = model(images)
    assert type(logits) is Tensor
    assert count(model, images.shape[-2:]) == found
    assert torch.equal(model(images), logits)


@families
def test_no_weights_are_needed(subject: Subject) -> None:
    size = subject.images().shape[-2:]
    with torch.device("meta"):
        shapes_alone = subject.build()
    assert count(shapes_alone, size) == count(subject.build(), size) == count(subject.build().bfloat16(), size)


def test_every_family_is_tested_here() -> None:
    assert len(FAMILIES) >= 4


def test_a_wrong_size_is_told() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    with pytest.raises(
        LocAtError, match=r"VisionTransformer refuses images of 24 x 32 pixels: .*\(32\).*\(40\)\. Give"
    ):
        count(model, (24, 32))
    with pytest.raises(LocAtError, match=r"Layers refuses images of 7 x 12 pixels: .*"):
        count(Layers(), (7, 12))


def test_a_model_that_looks_at_values_is_told() -> None:
    with pytest.raises(LocAtError, match="Sorts cannot be counted: what it does depends on values, "):
        count(Sorts(), (5, 7))
