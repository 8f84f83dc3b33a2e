from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from locatvit.errors import LocAtError
from locatvit.training.optim import adamw, one_cycle_schedule, triangular_schedule


def learning_rates(make: Callable[[Optimizer], LRScheduler], num_updates: int, lr: float) -> list[float]:
    """What each update of a run of ``num_updates`` sees."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=lr)
    schedule, seen = make(optimizer), []
    for _ in range(num_updates):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_triangle_by_hand() -> None:
    rates = learning_rates(lambda o: triangular_schedule(o, num_updates=10, warmup_updates=4), 10, 1e-3)
    assert rates[0] == pytest.approx(1e-7, rel=1e-12)
    assert rates[1] == pytest.approx(1e-7 + 0.0009999 / 4, rel=1e-12)
    assert rates[2] == pytest.approx(0.00050005, rel=1e-12)
    assert rates[4] == 1e-3
    assert rates[7] == pytest.approx(0.00050005, rel=1e-12)
    assert rates[9] == pytest.approx(1e-3 - 0.0009999 * 5 / 6, rel=1e-12)  # at the end, update 10, it is 1e-7


def test_triangle_of_the_paper() -> None:
    """ImageNet at batch 1024: 1251 updates an epoch, 300 epochs, warm-up 20."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1e-3)
    schedule = triangular_schedule(optimizer, num_updates=300 * 1251, warmup_updates=20 * 1251)
    share = schedule.lr_lambdas[0]
    assert share(20 * 1251) == 1.0
    assert share(20 * 1251 - 1) < 1.0 > share(20 * 1251 + 1)
    assert share(300 * 1251) == pytest.approx(1e-4, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 6])
def test_triangle_without_warm_up_and_of_warm_up_alone(warmup: int) -> None:
    rates = learning_rates(lambda o: triangular_schedule(o, num_updates=6, warmup_updates=warmup), 6, 1.0)
    assert rates[0] == pytest.approx(1e-7 if warmup else 1.0)
    assert sorted(rates, reverse=warmup == 0) == rates


def test_triangle_refuses_what_is_no_triangle() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1e-8)
    with pytest.raises(LocAtError, match=r"warmup_updates is 7; it must be from 0 to num_updates, 6"):
        triangular_schedule(optimizer, num_updates=6, warmup_updates=7)
    with pytest.raises(LocAtError, match=r"learning rate is 1e-08; it must be at least 1e-07"):
        triangular_schedule(optimizer, num_updates=6, warmup_updates=2)


def test_one_cycle_by_hand() -> None:
    """Section 5 of the details: 1e-7, the peak after a quarter, 1e-11 in the last of the updates."""
    rates = learning_rates(lambda o: one_cycle_schedule(o, num_updates=20), 20, 1e-3)
    assert rates[0] == pytest.approx(1e-7)
    assert rates[2] == pytest.approx((1e-7 + 1e-3) / 2)
    assert rates[4] == pytest.approx(1e-3)
    assert rates[5] == pytest.approx(1e-3 - (1e-3 - 1e-11) / 15)
    assert rates[19] == pytest.approx(1e-11)
    with pytest.raises(LocAtError, match=r"num_updates is 4 and pct_start 0.25: .* at least 5"):
        learning_rates(lambda o: one_cycle_schedule(o, num_updates=4), 4, 1e-3)


def test_decay_groups_of_a_vit() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, reg_tokens=2)
    model.blocks[0].attn.gaug = nn.ModuleDict({"log_var": nn.Linear(64, 2), "log_alpha": nn.Linear(64, 1)})
    model.head.weight.requires_grad_(False)
    optimizer = adamw(model, lr=1e-3, weight_decay=0.05)

    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    found = {name: decay.get(id(weight)) for name, weight in model.named_parameters()}
    assert found["blocks.0.attn.gaug.log_var.weight"] == found["blocks.0.attn.gaug.log_alpha.weight"] == 0.05
    assert found["blocks.0.attn.gaug.log_var.bias"] == found["blocks.0.attn.gaug.log_alpha.bias"] == 0.0
    assert found["pos_embed"] == found["cls_token"] == 0.0
    assert found["reg_token"] == 0.05  # the authors decay registers
    assert found["patch_embed.proj.weight"] == found["blocks.0.mlp.fc1.weight"] == 0.05
    assert found["norm.weight"] == found["blocks.0.mlp.fc1.bias"] == 0.0
    assert found["head.weight"] is None
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8


def test_nothing_to_train() -> None:
    with pytest.raises(LocAtError, match=r"Linear has no weight that requires a gradient"):
        adamw(nn.Linear(2, 2).requires_grad_(False), lr=1e-3)
