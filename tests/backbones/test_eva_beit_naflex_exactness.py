"""Every variant over timm's EVA, BEiT, relative-position and NaFlex ViTs against the formulas in float64."""

from __future__ import annotations

import pytest
import torch

from attention_by_hand import VARIANTS, compare
from locatvit import LocAtConfig
from small_models import SUBJECTS, stir

pytestmark = pytest.mark.usefixtures("one_thread")

HOSTS = (
    "eva", "eva-02", "eva-02, three projections", "dinov3", "perception encoder", "beit", "beit, shared table",
    "relative positions", "relative positions, class token", "relative positions, shared", "naflex", "naflex, rope",
    "naflex, attention pool",
)  # fmt: skip
MORE = {
    "no positions": LocAtConfig(position_embedding=False),
    "inverse distance, automatic": LocAtConfig(kernel="inverse_distance", alpha="auto", variance="input"),
}
HAVE_POSITIONS = ("eva", "eva-02", "perception encoder", "beit, shared table", "naflex", "naflex, attention pool")
CASES = [
    pytest.param(host, config, id=f"{host}, {name}")
    for host in HOSTS
    for name, config in {**VARIANTS, **MORE}.items()
    if config.position_embedding or host in HAVE_POSITIONS
]


@pytest.mark.parametrize(("host", "config"), CASES)
def test_outputs_and_gradients_are_the_formulas(host, config):
    """On 3 x 5 patches, which the model is made for."""
    model = stir(SUBJECTS[host].build(config, img_size=(24, 40)))
    compare(model, torch.randn(2, 3, 24, 40, dtype=torch.float64), (3, 5))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("host", ["eva", "naflex"])
def test_another_size_than_the_trained_one(host, config):
    subject = SUBJECTS[host]
    model = stir(subject.build(config, **subject.any_size))
    compare(model, torch.randn(2, 3, 16, 56, dtype=torch.float64), (2, 7))
