"""LocAtViT against the authors' outputs, and against the formulas in float64 at other sizes and settings."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import locatvit
import vit_by_hand

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402


def _fill(model):
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    arrays = recipe.init_state(shapes)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


def _relative(got, want):
    got, want = np.asarray(got, np.float64).reshape(-1), np.asarray(want, np.float64).reshape(-1)
    return np.abs(got - want).max() / np.abs(want).max()


def _thin(golden, name, tensor):
    return tensor.detach().flatten()[:: int(golden[f"{name}_step"])]


def test_keys_are_the_authors_in_order():
    keys = json.loads((GOLDEN / "keys" / "locatvit_tiny.json").read_text())
    model = locatvit.create_model("locatvit_tiny")
    assert [[name, list(value.shape)] for name, value in model.state_dict().items()] == keys["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == keys["parameters"]


@pytest.mark.parametrize(
    ("dtype", "suffix", "relative"),
    [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-11)],
    ids=["f32", "f64"],
)
def test_outputs_and_gradients_are_the_authors(dtype, suffix, relative):
    golden = np.load(GOLDEN / "locatvit_tiny.npz")
    model = _fill(locatvit.create_model("locatvit_tiny")).to(dtype).eval()
    images = torch.from_numpy(recipe.make_input((2, 3, 224, 224))).to(dtype)
    logits = model(images)
    loss = logits.square().mean()
    loss.backward()
    assert _relative(logits.detach(), golden[f"logits{suffix}"]) < relative
    assert _relative(loss.detach(), golden[f"loss{suffix}"]) < relative
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    for name, norm in zip(golden["grad_names"], golden[f"grad_norms{suffix}"], strict=True):
        assert norms[str(name)] == pytest.approx(norm, rel=10 * relative), name


def test_inner_tokens_are_the_authors():
    golden = np.load(GOLDEN / "locatvit_tiny.npz")
    model = _fill(locatvit.create_model("locatvit_tiny")).eval()
    images = torch.from_numpy(recipe.make_input((2, 3, 224, 224)))
    blocks = {}
    for index in (0, 11):
        model.blocks[index].register_forward_hook(lambda _m, _a, out, index=index: blocks.update({index: out}))
    tokens = model.forward_features(images)
    refined = model.attn_pool.refinement(tokens)
    for name, tensor in (
        ("features", tokens),
        ("refined", refined),
        ("block_first", blocks[0]),
        ("block_last", blocks[11]),
    ):
        assert _relative(_thin(golden, name, tensor), golden[name]) < 1e-5, name


def test_variance_and_alpha_are_the_authors():
    golden = np.load(GOLDEN / "locatvit_tiny.npz")
    model = _fill(locatvit.create_model("locatvit_tiny")).eval()
    images = torch.from_numpy(recipe.make_input((2, 3, 224, 224)))
    found = {}

    def keep(gaug, args, _out):
        found[gaug] = gaug.variance_and_alpha(*args)

    for block in model.blocks:
        block.attn.gaug.register_forward_hook(keep)
    with torch.no_grad():
        model(images)
    for layer, block in enumerate(model.blocks):
        for kind, values in zip(("var", "alpha"), found[block.attn.gaug], strict=True):
            stats = [values.mean(), values.std(), values.min(), values.max()]
            assert _relative([s.item() for s in stats], golden[f"{kind}_stats"][layer]) < 1e-4


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
    assert _relative(got.detach(), want.detach()) < 1e-11
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
    model = _fill(model).double().eval()
    _compare(model, torch.randn(2, 3, *size, dtype=torch.float64), (7, 7), settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("size", [(40, 56), (56, 40), (256, 224)], ids=str)
def test_a_model_built_for_the_size(settings, size):
    model = _fill(locatvit.create_model("locatvit_tiny", **SMALL, **settings, img_size=size)).double().eval()
    _compare(model, torch.randn(2, 3, *size, dtype=torch.float64), (size[0] // 8, size[1] // 8), settings)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 224), (224, 320), (512, 512)], ids=str)
def test_full_size_in_float32(size):
    model = _fill(locatvit.create_model("locatvit_tiny", dynamic_img_size=True)).eval()
    images = torch.from_numpy(recipe.make_input((1, 3, *size)))
    logits = model(images)
    logits.square().mean().backward()
    norms = [parameter.grad.norm().item() for parameter in model.parameters()]
    model = model.double()
    model.zero_grad()
    truth = vit_by_hand.forward(model, images.double(), (14, 14), gaug=True, prr=True)
    truth.square().mean().backward()
    assert _relative(logits.detach(), truth.detach()) < 1e-5
    true_norms = [parameter.grad.norm().item() for parameter in model.parameters()]
    assert norms == pytest.approx(true_norms, rel=1e-4)
