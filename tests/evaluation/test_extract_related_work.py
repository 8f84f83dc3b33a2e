"""Features of the backbones of the paper's Table 6 that timm has: ConViT, Twins, DaViT, GCViT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.gcvit import GlobalContextVit
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit import LocAtError
from locatvit.evaluation.extract import accept_any_size, extract_features, frozen

_STAGES = {"embed_dims": (8, 16, 24, 32), "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convit": (
        lambda: timm.create_model("convit_tiny", img_size=64, embed_dim=8, depth=3, num_heads=4, local_up_to_layer=2),
        16,
    ),
    "twins, windows": (lambda: timm.create_model("twins_svt_small", img_size=64, **_STAGES), 32),
    "twins, subsampled": (lambda: timm.create_model("twins_pcpvt_small", img_size=64, **_STAGES), 32),
    "davit": (lambda: timm.create_model("davit_tiny", **_STAGES), 32),
    "gcvit": (
        lambda: GlobalContextVit(
            img_size=64, window_size=(2, 2, 4, 2), embed_dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4)
        ),
        32,
    ),
}  # fmt: skip
ANY_SIZE = [name for name in MODELS if name != "gcvit"]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def last_stage(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the last block or stage gives while the whole model classifies, whatever the form."""
    stages = getattr(model, "stages", None) or model.blocks
    module = stages[-1][-1] if isinstance(stages[-1], nn.ModuleList) else stages[-1]
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    model(images)
    handle.remove()
    return caught


@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_last_layers_raw_output(name):
    model, images = make(name), torch.randn(2, 3, 64, 64)
    stride = MODELS[name][1]
    with frozen(model):
        features = extract_features(model, images)
        (want,) = last_stage(model, images)
    if want.ndim == 4:
        want = want.flatten(2).transpose(1, 2)
    elif name == "convit":  # [CLS] joins after the local blocks
        want = want[:, 1:]
    assert features.grid_size == (64 // stride, 64 // stride)
    assert features.cls is None
    assert features.prefix.shape == (2, 0, want.shape[-1])
    if "twins" in name:  # PEG follows the first block of a stage
        want = model.pos_block[-1](want, features.grid_size)
    torch.testing.assert_close(features.patches, want)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (96, 160), (70, 101)], ids=str)
@pytest.mark.parametrize("name", ANY_SIZE)
def test_any_size_is_the_padded_image(name, size):
    stride = MODELS[name][1]
    model = accept_any_size(accept_any_size(make(name)))
    images = torch.randn(1, 3, *size)
    grid = tuple(-(-side // stride) for side in size)
    padded = F.pad(images, (0, grid[1] * stride - size[1], 0, grid[0] * stride - size[0]))
    with frozen(model):
        features = extract_features(model, images)
        assert features.grid_size == grid
        assert features.patches.isfinite().all()
        if name != "davit" and size != (512, 512):  # it pads at each stage anew
            torch.testing.assert_close(features.patches, extract_features(model, padded).patches)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_any_size_leaves_weights_and_the_output_at_the_own_size(name):
    model, images = make(name), torch.randn(2, 3, 64, 64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with frozen(model):
        want = model(images)
        accept_any_size(model)
        model(torch.randn(1, 3, 96, 160))
        torch.testing.assert_close(model(images), want)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_convit_of_another_size_is_as_if_made_for_it():
    """A square size, which timm can make: positions given, the relative ones its own."""
    model, made = make("convit"), timm.create_model(
        "convit_tiny", img_size=96, embed_dim=8, depth=3, num_heads=4, local_up_to_layer=2
    ).eval()  # fmt: skip
    state = model.state_dict()
    table = state["pos_embed"].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    made.load_state_dict({**state, "pos_embed": table})
    images = torch.randn(2, 3, 96, 96)
    with frozen(model), frozen(made):
        torch.testing.assert_close(accept_any_size(model)(images), made(images))


def test_convits_distances_on_a_grid_that_is_no_square():
    """Turned over, image, kernels and positions together, the features are turned over: only if rows stay rows."""
    model = accept_any_size(make("convit"))
    with frozen(model):
        model(torch.randn(1, 3, 32, 48))
        relative = model.blocks[0].attn.rel_indices[0]
    assert relative.shape == (6, 6, 3)
    # from patch (0, 1) to (1, 2): one right, one down, squared distance 2
    assert relative[1, 5].tolist() == [1, 1, 2]
    # from (1, 0) to (0, 2): two right, one up
    assert relative[3, 2].tolist() == [2, -1, 5]


def test_gcvit_takes_its_own_size_alone():
    model = make("gcvit")
    with pytest.raises(
        LocAtError, match=r"GlobalContextVit refuses images of 96 x 64 pixels: it takes \(64, 64\) alone"
    ):
        extract_features(model, torch.zeros(1, 3, 96, 64))
    with pytest.raises(
        LocAtError, match="GlobalContextVit cannot be switched to other image sizes; create it with img"
    ):
        accept_any_size(model)


@pytest.mark.parametrize("name", MODELS)
def test_the_final_norm(name):
    model, images = make(name), torch.randn(2, 3, 64, 64)
    if name in ("gcvit", "davit"):
        with pytest.raises(LocAtError, match="norm is True, but .* has no final norm"):
            extract_features(model, images, norm=True)
        return
    with frozen(model):
        raw, normed = extract_features(model, images), extract_features(model, images, norm=True)
        torch.testing.assert_close(normed.patches, model.norm(raw.patches))
