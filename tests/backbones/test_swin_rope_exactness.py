"""LocAtSwin and LocAtRoPEViT against the authors' outputs, and every variant against the formulas in float64."""

import pytest
import torch

import golden_case
import locatvit
from attention_by_hand import VARIANTS, by_hand, compare, parameters
from golden_case import fill, relative

NAMES = ("locatswin_tiny", "locatvit_tiny_rope_mixed")
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "patch_size": 4, "window_size": 3, "num_classes": 5}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "num_classes": 5, "dynamic_img_size": True}


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_authors_in_order(name):
    golden_case.check_keys(name, locatvit.create_model(name))


@golden_case.PRECISIONS
def test_swin_outputs_and_gradients_are_the_authors(dtype):
    golden_case.check_outputs_and_gradients("locatswin_tiny", locatvit.create_model("locatswin_tiny"), dtype)


@pytest.mark.parametrize(
    # timm computes the angles of the rotation in float32, also in a model in float64
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-6)], ids=["f32", "f64"],
)  # fmt: skip
def test_rope_outputs_and_gradients_are_the_authors(dtype, bound):
    name = "locatvit_tiny_rope_mixed"
    # the gradient of one bias of alpha is a sum that cancels to a millionth of others
    slack = bound * 1e-3
    golden_case.check_outputs_and_gradients(name, locatvit.create_model(name), dtype, bound, slack)


@pytest.mark.parametrize("name", NAMES)
def test_inner_tokens_are_the_authors(name):
    golden_case.check_inner_tokens(name, locatvit.create_model(name))


@pytest.mark.parametrize("name", NAMES)
def test_variance_and_alpha_are_the_authors(name):
    golden_case.check_variance_and_alpha(name, locatvit.create_model(name))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("size", [(56, 56), (56, 88)], ids=str)
def test_variants_in_vit(config, size):
    """Trained at 7 x 7, also applied at 7 x 11."""
    model = fill(locatvit.create_model("locatvit_tiny", **VIT, img_size=56, reg_tokens=2, locat=config))
    compare(model, torch.randn(2, 3, *size, dtype=torch.float64), (size[0] // 8, size[1] // 8))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_variants_in_rope(config):
    model = fill(locatvit.create_model("locatvit_tiny_rope_mixed", **VIT, img_size=56, locat=config))
    compare(model, torch.randn(2, 3, 40, 72, dtype=torch.float64), (5, 9))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_variants_in_swin(config):
    """15 x 11 patches in windows of 3 x 3, so the last column of windows is padded; then 8 x 6."""
    model = fill(locatvit.create_model("locatswin_tiny", **SWIN, img_size=(60, 44), locat=config))
    compare(model, torch.randn(2, 3, 60, 44, dtype=torch.float64), None)


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # timm resamples its table there
def test_swin_reads_a_changed_window_again():
    model = fill(locatvit.create_model("locatswin_tiny", **SWIN, img_size=48))
    model.set_input_size((80, 96), window_size=(5, 4))
    assert [module.window_size for module in model.modules() if hasattr(module, "window_size")][-1] == (5, 4)
    compare(model, torch.randn(2, 3, 80, 96, dtype=torch.float64), None)


def test_swin_of_any_size():
    model = fill(locatvit.create_model("locatswin_tiny", **SWIN, img_size=48, strict_img_size=False))
    compare(model, torch.randn(2, 3, 68, 52, dtype=torch.float64), None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 320), (320, 256)], ids=str)
@pytest.mark.parametrize("name", ["locatvit_tiny_rope_mixed", "locatvit_tiny_reg4"])
def test_full_size_in_float32(name, size):
    model = fill(locatvit.create_model(name, dynamic_img_size=True)).eval()
    images = golden_case.images(1, 3, *size)
    logits = model(images)
    logits.square().mean().backward()
    norms = golden_case.gradient_norms(model)
    twin = by_hand(model.double(), (size[0] // 16, size[1] // 16))
    twin.zero_grad()
    truth = twin(images.double())
    truth.square().mean().backward()
    assert relative(logits.detach(), truth.detach()) < 1e-5
    true_norms = {key: parameter.grad.norm().item() for key, parameter in parameters(twin).items()}
    assert norms == pytest.approx(true_norms, rel=1e-4, abs=1e-6 * max(true_norms.values()))
