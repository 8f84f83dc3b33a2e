"""LocAtViT against the authors' outputs, and against the formulas in float64 at other sizes and settings."""

import pytest
import torch

import golden_case
import locatvit
import vit_by_hand
from golden_case import fill, gradient_norms, images, relative


def test_keys_are_the_authors_in_order():
    golden_case.check_keys("locatvit_tiny", locatvit.create_model("locatvit_tiny"))


@golden_case.PRECISIONS
def test_outputs_and_gradients_are_the_authors(dtype):
    golden_case.check_outputs_and_gradients("locatvit_tiny", locatvit.create_model("locatvit_tiny"), dtype)


def test_inner_tokens_are_the_authors():
    golden_case.check_inner_tokens("locatvit_tiny", locatvit.create_model("locatvit_tiny"))


def test_variance_and_alpha_are_the_authors():
    golden_case.check_variance_and_alpha("locatvit_tiny", locatvit.create_model("locatvit_tiny"))


SETTINGS = {
    "both": {},
    "gaug only": {"prr": False},
    "prr only": {"gaug": False},
    "none": {"gaug": False, "prr": False},
    "registers": {"reg_tokens": 4},
    "no positions": {"pos_embed": "none"},
}
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "num_classes": 5}


def _compare(model, images, trained, settings):
    switches = {key: settings.get(key, True) for key in ("gaug", "prr")}
    got = model(images)
    want = vit_by_hand.forward(model, images, trained, **switches)
    assert relative(got.detach(), want.detach()) < 1e-11
    names, parameters = zip(*model.named_parameters(), strict=True)
    cotangent = torch.randn_like(got)
    got_grads = torch.autograd.grad(got, parameters, cotangent)
    want_grads = torch.autograd.grad(want, parameters, cotangent, allow_unused=True)
    for name, a, b in zip(names, got_grads, want_grads, strict=True):
        b = torch.zeros_like(a) if b is None else b
        # a bias of the keys shifts all logits of a query alike: its gradient is zero but for rounding
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12, name


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("size", [(56, 56), (40, 56), (56, 88), (128, 128)], ids=str)
def test_another_size_than_the_trained_one(settings, size):
    """Trained at 7 x 7: the same grid, a narrower, a wider, and one that all is rescaled for."""
    model = locatvit.create_model("locatvit_tiny", **SMALL, **settings, img_size=56, dynamic_img_size=True)
    model = fill(model).double().eval()
    _compare(model, torch.randn(2, 3, *size, dtype=torch.float64), (7, 7), settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("size", [(40, 56), (56, 40), (256, 224)], ids=str)
def test_a_model_built_for_the_size(settings, size):
    model = fill(locatvit.create_model("locatvit_tiny", **SMALL, **settings, img_size=size)).double().eval()
    _compare(model, torch.randn(2, 3, *size, dtype=torch.float64), (size[0] // 8, size[1] // 8), settings)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 224), (224, 320), (512, 512)], ids=str)
def test_full_size_in_float32(size):
    model = fill(locatvit.create_model("locatvit_tiny", dynamic_img_size=True)).eval()
    inputs = images(1, 3, *size)
    logits = model(inputs)
    logits.square().mean().backward()
    norms = list(gradient_norms(model).values())
    model = model.double()
    model.zero_grad()
    truth = vit_by_hand.forward(model, inputs.double(), (14, 14), gaug=True, prr=True)
    truth.square().mean().backward()
    assert relative(logits.detach(), truth.detach()) < 1e-5
    true_norms = list(gradient_norms(model).values())
    assert norms == pytest.approx(true_norms, rel=1e-4)
