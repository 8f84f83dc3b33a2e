"""Jumbo, plain and with LocAt: the authors' numbers, timm's habits, and one MLP for all blocks."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

import formulas
import golden_case
import locatvit
from golden_case import fill, relative
from locatvit import LocAtConfig, LocAtError
from locatvit.backbones import jumbo
from locatvit.evaluation.extract import accept_any_size, extract_features
from locatvit.layers import LocalityAttention

SMALL: dict[str, Any] = {
    "img_size": 40, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7,
    "dynamic_img_size": True,
}  # fmt: skip
J = jumbo.NUM_JUMBO_TOKENS


def plain(name: str = "jumbo_tiny", **kwargs: Any) -> nn.Module:
    return timm.create_model(name, **kwargs)


def with_locat(config: LocAtConfig | None = None, **kwargs: Any) -> nn.Module:
    return locatvit.add_locat(plain(**kwargs), config)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, *(size or (40, 40)), dtype=dtype)


def gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(inputs).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_keys_are_the_authors_in_order() -> None:
    golden_case.check_keys("locatjumbo_tiny", with_locat(num_classes=100))


@golden_case.PRECISIONS
def test_outputs_and_gradients_are_the_authors(dtype: torch.dtype) -> None:
    golden_case.check_outputs_and_gradients("locatjumbo_tiny", with_locat(num_classes=100), dtype)


def test_inner_tokens_are_the_authors() -> None:
    golden_case.check_inner_tokens("locatjumbo_tiny", with_locat(num_classes=100))


def test_variance_and_alpha_are_the_authors() -> None:
    golden_case.check_variance_and_alpha("locatjumbo_tiny", with_locat(num_classes=100))


@pytest.mark.parametrize(
    ("name", "parameters", "new"), [("jumbo_tiny", 17_348_776, 2_724), ("jumbo_base", 260_495_080, 3_876)]
)
def test_parameters_of_the_paper(name: str, parameters: int, new: int) -> None:
    with torch.device("meta"):
        model = plain(name)
        assert count(model) == parameters
        assert count(locatvit.add_locat(model)) == parameters + new


def test_small_is_between_tiny_and_base() -> None:
    with torch.device("meta"):
        model = plain("jumbo_small")
    assert (model.embed_dim, model.blocks[0].attn.num_heads, len(model.blocks)) == (384, 6, 12)


def by_hand(model: nn.Module, inputs: Tensor, trained: tuple[int, int], config: LocAtConfig | None) -> Tensor:
    """Logits read off the parameters alone; ``config`` is None for the plain model."""
    p = dict(model.state_dict(keep_vars=True))
    x = F.conv2d(inputs, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=8)
    grid = (x.shape[2], x.shape[3])
    table = p["pos_embed"]
    if grid != trained:
        table = resample_abs_pos_embed(table, new_size=grid, old_size=trained, num_prefix_tokens=0)
    patches = x.flatten(2).transpose(1, 2) + table
    wide = p["cls_token"].flatten().expand(len(x), -1)
    heads = model.blocks[0].attn.num_heads
    for i in range(len(model.blocks)):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        tokens = torch.cat((wide.unflatten(1, (J, -1)), patches), dim=1)
        y = layer_norm(tokens, b, "norm1", 1e-6)
        tokens = tokens + b["ls1.gamma"] * attention(b, y, heads, grid, trained, config is not None and config.gaug)
        wide, patches = tokens[:, :J].flatten(1), tokens[:, J:]
        patches = patches + b["ls2.gamma"] * mlp(layer_norm(patches, b, "norm2", 1e-6), b, "mlp")
        wide = wide + b["ls3.gamma"] * mlp(layer_norm(wide, b, "norm3", 1e-5), p, "jumbo_mlp")
    wide = layer_norm(wide, p, "norm", 1e-5)
    if config is not None and config.prr:
        patches = layer_norm(patches, p, "norm_patches", 1e-5)
        tokens = torch.cat((wide.unflatten(1, (J, -1)), patches), dim=1)
        wide = formulas.refinement(tokens, heads)[:, :J].flatten(1)
    return wide @ p["head.weight"].T + p["head.bias"]


def layer_norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    hidden = F.gelu(x @ p[f"{name}.fc1.weight"].T + p[f"{name}.fc1.bias"])
    return hidden @ p[f"{name}.fc2.weight"].T + p[f"{name}.fc2.bias"]


def attention(
    b: dict[str, Tensor], x: Tensor, heads: int, grid: tuple[int, int], trained: tuple[int, int], gaug: bool
) -> Tensor:
    qkv = x @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    bias = q.new_zeros(())
    if gaug:
        q_sp, longest = q[:, :, J:], max(trained)
        logits = q_sp @ b["attn.gaug.log_var.weight"].T + b["attn.gaug.log_var.bias"]
        variance = formulas.variance(logits, longest**2)
        if grid != trained:
            variance = variance * min(grid) / min(trained)
        alpha = F.softplus(q_sp @ b["attn.gaug.log_alpha.weight"].T + b["attn.gaug.log_alpha.bias"])[..., 0]
        bias = formulas.supplement(variance + 0.1, alpha, *grid, J, cap=(longest - 1) ** 2)
    out = formulas.attention(q, k, v, bias).transpose(1, 2).flatten(2)
    return out @ b["attn.proj.weight"].T + b["attn.proj.bias"]


CONFIGS = {
    "plain": None,
    "both": LocAtConfig(),
    "gaug only": LocAtConfig(prr=False),
    "prr only": LocAtConfig(gaug=False),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(40, 40), (24, 40), (56, 88)], ids=str)
def test_outputs_and_gradients_are_the_formulas(config: LocAtConfig | None, size: tuple[int, int]) -> None:
    """Trained at 5 x 5: the same grid, a narrower and a wider one."""
    model = plain(**SMALL) if config is None else with_locat(config, **SMALL)
    model = fill(model).double().eval()
    inputs = images(*size, dtype=torch.float64)
    got, want = model(inputs), by_hand(model, inputs, (5, 5), config)
    assert relative(got.detach(), want.detach()) < 1e-11
    names, parameters = zip(*model.named_parameters(), strict=True)
    cotangent = torch.randn_like(got)
    got_grads = torch.autograd.grad(got, parameters, cotangent)
    want_grads = torch.autograd.grad(want, parameters, cotangent, allow_unused=True)
    for name, a, b in zip(names, got_grads, want_grads, strict=True):
        b = torch.zeros_like(a) if b is None else b
        # a bias of the keys shifts all logits of a query alike: its gradient is zero but for rounding
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12, name


@pytest.mark.parametrize("config", [LocAtConfig(), LocAtConfig(prr=False)], ids=["prr", "no prr"])
def test_gradient_reaches_every_gaug_through_prr_alone(config: LocAtConfig) -> None:
    grads = gradients(fill(with_locat(config, **SMALL)), images())
    for index in (0, 1):
        for tensor in ("log_var", "log_alpha"):
            reached = grads[f"blocks.{index}.attn.gaug.{tensor}.weight"].abs().max() > 0
            assert reached == (config.prr or index == 0)


def test_size_that_is_no_multiple_of_the_patch_and_a_new_input_size() -> None:
    model = fill(with_locat(**{**SMALL, "dynamic_img_size": False}))
    model.set_input_size((24, 56))
    assert model.pos_embed.shape == (1, 21, 24)
    assert model(images(24, 56)).shape == (2, 7)
    accept_any_size(model)
    assert model(images(41, 50)).shape == (2, 7)


def test_without_positions() -> None:
    model = locatvit.add_locat(plain(**SMALL), LocAtConfig(position_embedding=False))
    assert "pos_embed" not in model.state_dict()
    assert model(images()).shape == (2, 7)
    assert "pos_embed" not in plain(**SMALL, pos_embed="none").state_dict()


def test_initial_values_are_the_authors() -> None:
    model = plain(**{**SMALL, "embed_dim": 48, "num_classes": 100})
    for name, value in model.state_dict().items():
        if name.endswith("gamma"):
            assert value.eq(1e-4).all(), name
        elif "norm" in name:
            assert value.eq(float(name.endswith("weight"))).all(), name
        elif name == "head.weight":
            assert value.eq(0).all()
        elif name == "head.bias":
            assert torch.allclose(value, torch.tensor(-4.605170))
        elif name.endswith("bias") and "patch_embed" not in name:
            assert value.eq(0).all(), name
        elif name == "pos_embed" or ("weight" in name and "patch_embed" not in name):
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    eps = {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert eps == {"norm": 1e-5} | {
        f"blocks.{i}.norm{n}": value for i in (0, 1) for n, value in ((1, 1e-6), (2, 1e-6), (3, 1e-5))
    }


@pytest.mark.parametrize("num_classes", [1, 2, 10, 1000])
def test_any_number_of_classes_starts_at_even_odds(num_classes: int) -> None:
    model = with_locat(**{**SMALL, "num_classes": num_classes})
    logits = model(images())
    assert logits.shape == (2, num_classes)
    assert torch.allclose(logits.exp(), torch.tensor(1 / num_classes))


def test_weights_can_be_drawn_again() -> None:
    model = plain(**SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert not value.eq(3).any(), name
        assert value.shape == before[name].shape
    assert model.head.bias.eq(-math.log(7)).all()


def is_shared(model: nn.Module) -> bool:
    return all(block.jumbo_mlp is model.jumbo_mlp for block in model.blocks)


def test_one_mlp_under_many_names() -> None:
    model = with_locat(**SMALL)
    assert is_shared(model)
    names = [name for name, _ in model.named_parameters() if "jumbo_mlp" in name]
    assert len(names) == 4
    assert len([name for name in model.state_dict() if "jumbo_mlp" in name]) == 12


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "double"])
def test_a_copy_shares_its_own(how: str) -> None:
    model = fill(with_locat(**SMALL)).eval()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif how == "torch.save":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copy.deepcopy(model).double().float()
    assert is_shared(other)
    assert other.jumbo_mlp is not model.jumbo_mlp
    inputs = images()
    assert other(inputs).equal(model(inputs))
    with torch.no_grad():  # what the copy holds is its own, also in hooks
        for parameter in model.parameters():
            parameter.zero_()
    assert not other(inputs).equal(model(inputs))
    assert other.forward_features(inputs).abs().max() > 0


def test_head_reads_the_joined_tokens() -> None:
    model = fill(plain(**SMALL)).eval()
    tokens = model.forward_features(images())
    assert tokens.shape == (2, J + 25, 24)
    assert model.forward_head(tokens, pre_logits=True).equal(tokens[:, :J].flatten(1))
    assert (model.num_features, model.head_hidden_size) == (24, J * 24)


@pytest.mark.parametrize("locat", [False, True])
def test_reset_classifier(locat: bool) -> None:
    model = with_locat(**SMALL) if locat else plain(**SMALL)
    model.eval()
    model.reset_classifier(11)
    assert model.get_classifier().weight.shape == (11, J * 24)
    assert model.head.bias.eq(-math.log(11)).all()
    assert not model.head.training
    assert model(images()).shape == (2, 11)
    model.reset_classifier(0)
    assert model(images()).shape == (2, J * 24)
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, J + 25, 24)
    model.reset_classifier(3, "token")
    assert model(images()).shape == (2, 3)
    with pytest.raises(LocAtError, match=r"global_pool is 'avg'; the head of a Jumbo model reads its wide \[CLS\]"):
        model.reset_classifier(3, "avg")


def test_created_without_a_head() -> None:
    assert plain(**{**SMALL, "num_classes": 0})(images()).shape == (2, J * 24)
    model = with_locat(**{**SMALL, "num_classes": 0, "global_pool": ""})
    assert model(images()).shape == (2, J + 25, 24)


def test_dense_features_have_the_norm_of_patches_only_when_they_have_the_norm() -> None:
    model = fill(with_locat(**SMALL)).eval()
    inputs, raw = images(), {}
    model.blocks[-1].register_forward_hook(lambda _module, _args, out: raw.update(last=out))
    final, (taken,) = model.forward_intermediates(inputs, indices=1, norm=True, output_fmt="NLC")
    normed = F.layer_norm(raw["last"][:, J:], (24,), model.norm_patches.weight, model.norm_patches.bias, 1e-5)
    assert torch.allclose(taken, normed, atol=1e-6)
    assert torch.allclose(final[:, J:], normed, atol=1e-6)
    assert final.equal(model.forward_features(inputs))
    features = extract_features(model, inputs)
    assert features.patches.equal(raw["last"][:, J:])
    assert features.prefix.equal(raw["last"][:, :J])
    assert features.cls is not None
    normed_features = extract_features(model, inputs, norm=True)
    assert torch.allclose(normed_features.patches, normed, atol=1e-6)


def test_plain_model_leaves_its_patches_without_norm() -> None:
    model = fill(plain(**SMALL)).eval()
    inputs, raw = images(), {}
    model.blocks[-1].register_forward_hook(lambda _module, _args, out: raw.update(last=out))
    assert model.forward_features(inputs)[:, J:].equal(raw["last"][:, J:])


def test_features_only() -> None:
    model = plain(**SMALL, features_only=True, out_indices=(0, 1))
    assert [tuple(one.shape) for one in model(images(24, 56))] == [(2, 24, 3, 7)] * 2


def test_pruned_to_its_first_block() -> None:
    model = fill(plain(**SMALL)).eval()
    inputs = images()
    (want,) = model.forward_intermediates(inputs, indices=[0], intermediates_only=True)
    model.prune_intermediate_layers([0], prune_norm=True)
    assert len(model.blocks) == 1
    assert torch.allclose(model.forward_intermediates(inputs, indices=[0], intermediates_only=True)[0], want)


@pytest.mark.parametrize("locat", [False, True])
def test_checkpointed_blocks_give_equal_gradients(locat: bool) -> None:
    model = fill(with_locat(**SMALL) if locat else plain(**SMALL))
    inputs = images()
    want = gradients(model, inputs)
    model.set_grad_checkpointing()
    got = gradients(model, inputs)
    assert all(got[name].equal(gradient) for name, gradient in want.items())


@pytest.mark.parametrize("locat", [False, True])
def test_compiles_in_one_graph(locat: bool) -> None:
    model = fill(with_locat(**SMALL) if locat else plain(**SMALL)).eval()
    inputs = images()
    torch.compiler.reset()  # other tests' graphs of timm's forward count towards its limit
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(inputs), model(inputs), atol=1e-5)


def test_bfloat16_autocast() -> None:
    model = fill(with_locat(**SMALL))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    logits.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_masks_reach_the_attention() -> None:
    model = fill(plain(**SMALL)).eval()
    inputs = images()
    everything = torch.ones(1, 1, J + 25, J + 25, dtype=torch.bool)
    assert torch.allclose(model(inputs, attn_mask=everything), model(inputs), atol=1e-5)
    others = everything.clone()
    others[..., J + 12] = False  # nobody sees the middle patch
    moved = inputs.clone()
    moved[..., 16:24, 16:24] += 1.0
    assert model(moved, attn_mask=others).equal(model(inputs, attn_mask=others))
    assert not model(moved).equal(model(inputs))


def test_stochastic_depth_and_dropped_patches() -> None:
    model = plain(**SMALL, drop_path_rate=0.5, patch_drop_rate=0.4)
    assert model.blocks[1].drop_path3.drop_prob == 0.5
    shapes: list[torch.Size] = []
    model.blocks[0].register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))
    model(images())
    assert shapes == [(2, J + 15, 24)]  # all of the wide token is kept


def test_wide_token_of_another_width() -> None:
    model = fill(with_locat(**SMALL, num_jumbo_tokens=2))
    assert model.head.weight.shape == (7, 48)
    assert model.cls_token.shape == (1, 2, 24)
    assert model(images()).shape == (2, 7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"global_pool": "avg"}, r"global_pool is 'avg'; the head of a Jumbo .* it must be one of 'token', ''"),
        ({"global_pool": "prr"}, r"global_pool is 'prr'; the head"),
        ({"reg_tokens": 4}, r"reg_tokens is 4; a Jumbo model has reg_tokens=0: leave it out"),
        ({"class_token": False}, r"class_token is False; a Jumbo model has class_token=True"),
        ({"num_jumbo_tokens": 0}, r"num_jumbo_tokens is 0; it must be a whole number >= 1"),
    ],
)
def test_keywords_that_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        locatvit.create_model("jumbo_tiny", **{**SMALL, **kwargs})


def test_no_published_weights() -> None:
    with pytest.raises(LocAtError, match="'jumbo_tiny' cannot be created with pretrained=True"):
        locatvit.create_model("jumbo_tiny", pretrained=True, **SMALL)


def test_what_timm_knows_of_it() -> None:
    assert set(timm.list_models("jumbo*")) == {"jumbo_tiny", "jumbo_small", "jumbo_base"}
    model = plain(**SMALL)
    config = timm.data.resolve_model_data_config(model)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bicubic")
    assert model.no_weight_decay() >= {"cls_token", "pos_embed"}


def test_identity_start_leaves_the_output_and_learns() -> None:
    inputs = images().double()  # in float32 two orders of summation differ by as much as an output near zero allows
    model = fill(plain(**SMALL)).double().eval()
    want = model(inputs)
    locatvit.add_locat(model, LocAtConfig(start="identity"))
    torch.testing.assert_close(model(inputs), want, rtol=1e-11, atol=1e-12)
    grads = gradients(model, inputs)
    assert grads["attn_pool.refinement.gate"].abs() > 0
    assert grads["norm_patches.weight"].abs().max() == 0  # it matters through the gate alone
    with torch.no_grad():
        model.attn_pool.refinement.gate.fill_(1.0)
    assert gradients(model, inputs)["norm_patches.weight"].abs().max() > 0


def test_gaug_alone_has_no_norm_of_patches() -> None:
    model = with_locat(LocAtConfig(prr=False), **SMALL)
    assert "norm_patches.weight" not in model.state_dict()
    assert isinstance(model.blocks[0].attn, LocalityAttention)
    assert model.blocks[0].attn.num_prefix_tokens == J


def test_new_weights_are_where_the_models_are() -> None:
    model = with_locat(**SMALL, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LocAtConfig(prr=False, pooling="avg"), "pooling is 'avg', but the head of a Jumbo model reads its wide"),
        (LocAtConfig(layers=(2,)), r"layers is \(2,\); the model's blocks are numbered 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_leave_the_model_as_it_was(config: LocAtConfig, message: str) -> None:
    model = plain(**SMALL)
    before = list(model.state_dict())
    with pytest.raises(LocAtError, match=message):
        locatvit.add_locat(model, config)
    assert list(model.state_dict()) == before
    assert model.global_pool == "token"
