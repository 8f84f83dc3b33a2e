"""Training of LocAt alone."""

import pytest
import torch

import locatvit
from locatvit import LocAtConfig, LocAtError
from small_models import NAMES, image_size, small


@pytest.mark.parametrize("name", NAMES)
def test_only_locat_and_the_head_learn(name):
    model = small(name, locat=LocAtConfig(start="identity"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learning = locatvit.freeze_host(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images, labels = torch.randn(4, 3, image_size(name), image_size(name)), torch.tensor([0, 1, 2, 3])
    for _ in range(3):  # an identity start needs a step before variance and gate meet anything
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images) * 100, labels).backward()
        optimizer.step()
    for key, value in model.state_dict().items():
        is_ours = ".gaug." in key or key.endswith("gate") or key.startswith(("head.", "norm_patches."))
        assert (key in learning) == is_ours, key
        if not is_ours:
            assert torch.equal(value, before[key]), key
    changed = [key for key in learning if not torch.equal(model.state_dict()[key], before[key])]
    assert {key.split(".")[-2] for key in changed} >= {"log_alpha"}


def test_without_the_head():
    learning = locatvit.freeze_host(small("locatvit_tiny"), head=False)
    assert learning
    assert all(".gaug." in name for name in learning)


def test_a_model_without_locat():
    with pytest.raises(LocAtError, match="has no LocAt, so all of it would be frozen; call add_locat first"):
        locatvit.freeze_host(torch.nn.Linear(2, 2))
