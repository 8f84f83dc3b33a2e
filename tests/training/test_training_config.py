from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from locatvit.errors import LocAtError
from locatvit.training.config import ClassificationConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, r"^epochs is 0; it must be a whole number >= 1$"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number >= 1"),
        ({"batch_size": 31}, "batch_size is 31; Mixup and CutMix pair the images .* mixup and cutmix to 0$"),
        ({"lr": -1e-3}, "lr is -0.001; it must be at least 1e-07, where the schedule starts"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"warmup_epochs": 301}, "warmup_epochs is 301; it must be from 0 to epochs, which is 300"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"betas": (0.9,)}, r"betas is \(0.9,\); it must be two numbers in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"mixup": -1.0}, "mixup is -1.0; it must be a number >= 0; 0 is off"),
        ({"cutmix": float("inf")}, "cutmix is inf"),
        ({"mixup_probability": 1.5}, "mixup_probability is 1.5; it must be a share from 0 to 1"),
        ({"mixup_switch": -0.5}, "mixup_switch is -0.5"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must be a share in \[0, 1\)"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0; it must be a number > 0, or None"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be between 0 and 1, or None"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of no, bf16, fp16"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": -1}, "num_workers is -1; it must be a whole number >= 0"),
        ({"evaluate_every_epochs": 0}, "evaluate_every_epochs is 0"),
        ({"checkpoint_every_updates": 0}, "checkpoint_every_updates is 0; it must be None or a whole number"),
    ],
)  # fmt: skip
def test_each_field_says_its_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        ClassificationConfig(**fields)


def test_defaults_are_the_papers() -> None:
    config = ClassificationConfig()
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.lr) == (300, 20, 1024, 1e-3)
    assert (config.weight_decay, config.betas, config.clip_grad) == (0.05, (0.9, 0.999), 5.0)
    assert (config.mixup, config.cutmix, config.mixup_probability, config.mixup_switch) == (0.8, 1, 1, 0.5)
    assert (config.label_smoothing, config.ema_decay, config.seed) == (0.1, None, 42)


def test_an_odd_batch_is_fine_without_mixing_and_a_list_of_betas_from_yaml_is_a_tuple() -> None:
    config = ClassificationConfig(batch_size=31, mixup=0, cutmix=0, betas=[0.8, 0.9])  # type: ignore[arg-type]
    assert not config.mixes
    assert hash(config.betas) == hash((0.8, 0.9))


def test_the_settings_need_no_torch() -> None:
    code = "import sys, locatvit.training.config; assert not {'torch', 'timm', 'accelerate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
