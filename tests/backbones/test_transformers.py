"""LocAt in Hugging Face transformers' models: small ones, made here."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import formulas
import locatvit
from attention_by_hand import HandAttention
from locatvit import LocAtConfig, LocAtError
from locatvit.backbones.transformers_files import load_pretrained
from small_models import VARIANTS, gaugs, stir
from small_transformers import BY_NAME, DINOV3, HOSTS, SIZES, VIT, Host, hosts, images, order, transformers

pytestmark = pytest.mark.usefixtures("one_thread")
IDENTITY, PLAIN = LocAtConfig(start="identity"), LocAtConfig(prr=False)
# written out in the formulas
OTHERS = {
    name: config
    for name, config in VARIANTS.items()
    if config.gaug and config.position_embedding and config.start == "paper" and name != "paper"
}


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "gaug")]


def by_hand(
    attention: Any, config: LocAtConfig, prefix: int, grid: tuple[int, int], args: tuple[Any, ...], kwargs: Any
) -> Tensor:
    """What an attention gives (Eq. 4), from its arguments."""
    x = kwargs.get("hidden_states", args[0] if args else None)
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (layer(x).unflatten(-1, (3, 8)).transpose(1, 2) for layer in layers)
    hand = HandAttention(attention, config, grid)
    bias = formulas.padded(hand.bias(q[:, :, prefix:], k[:, :, prefix:], x[:, prefix:]), prefix)
    if kwargs.get("position_embeddings") is not None:
        from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

        q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
    out = formulas.attention(q, k, v, bias if mask is None else bias + mask).transpose(1, 2).flatten(2)
    return (attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj)(out)


def check_attentions(host: Host, config: LocAtConfig, size: tuple[int, int]) -> None:
    """Every attention against the formulas, in float64."""
    config = host.config_for(config)
    model, compared = host.build(config).double(), []

    def compare(attention: Any, args: Any, kwargs: Any, output: Any) -> None:
        grid = (size[0] // 8, size[1] // 8)
        torch.testing.assert_close(output[0], by_hand(attention, config, host.num_prefix_tokens, grid, args, kwargs))
        compared.append(attention)

    for attention in attentions(model):
        if attention.gaug is not None:
            attention.register_forward_hook(compare, with_kwargs=True)
    with torch.no_grad():
        host.run(model, images(*size).double())
    assert len(compared) == (2 if config.layers is None else len(config.layers))


@hosts
@pytest.mark.parametrize("size", [(24, 24), (8, 72), (16, 40)], ids=str)
def test_attention_is_the_formula(host, size):
    """Also for images of other sizes, one of them with as many patches as the model's."""
    check_attentions(host, LocAtConfig(), size)


@pytest.mark.parametrize("host", [VIT, DINOV3, BY_NAME["SiglipForImageClassification"]], ids=lambda host: host.name)
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_variants_are_the_formula(host, config):
    if config.pooling == "avg" and host is not VIT:
        with pytest.raises(LocAtError, match="pooling is 'avg', but .* has no head that reads .CLS. alone"):
            host.build(config)
    else:
        check_attentions(host, config, (16, 40))


@hosts
def test_identity_start_leaves_the_output(host):
    plain, x = host.plain(), images()
    want = host.run(plain, x)
    model = locatvit.add_locat(plain, host.config_for(IDENTITY))
    torch.testing.assert_close(host.run(model, x), want, rtol=1e-5, atol=1e-6)


@hosts
def test_paper_start_changes_it(host):
    plain, x = host.plain(), images()
    want = host.run(plain, x)
    locatvit.add_locat(plain, host.config_for(LocAtConfig()))
    assert (host.run(plain, x) - want).abs().max() > 1e-3


@hosts
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_every_gradient_is_there(host, start):
    """LocAt's own, and those that the host had without it."""
    plain, x = host.plain(), images()
    host.run(plain, x).square().sum().backward()
    had = {
        name for name, parameter in plain.named_parameters() if parameter.grad is not None and "k_proj.bias" not in name
    }
    plain.zero_grad()
    model = locatvit.add_locat(plain, host.config_for(LocAtConfig(start=start)))
    host.run(model, x).square().sum().backward()
    ours = {name for name, _ in model.named_parameters() if ".gaug." in name or name == "prr.gate"}
    assert len(ours) == 8 + (start == "identity" and host.prr)
    idle = set()
    if start == "identity":  # the width does nothing while alpha is 0, nor PRR while its gate is
        last = {name for name in ours if "layers.1." in name and host.reads_prefix}
        idle = {name for name in ours if "log_var" in name} | last
    for name, parameter in model.named_parameters():
        if name in had | ours:
            assert parameter.grad.isfinite().all()
            assert bool((parameter.grad != 0).any()) == (name not in idle), name


@hosts
def test_an_image_does_not_see_its_neighbours(host):
    model, x = host.build().double(), images(batch=3).double()
    torch.testing.assert_close(host.run(model, x), torch.cat([host.run(model, image[None]) for image in x]))


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "ViTForImageClassification": lambda x: x[:, 0],
    "DeiTForImageClassification": lambda x: x[:, 0],
    "Dinov2ForImageClassification": lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1),
    "Dinov2WithRegistersForImageClassification": lambda x: torch.cat([x[:, 0], x[:, 4:].mean(1)], 1),
    "CLIPForImageClassification": lambda x: x[:, 1:].mean(1),
    "SiglipForImageClassification": lambda x: x.mean(1),
    "IJepaForImageClassification": lambda x: x.mean(1),
}


def backbone_of(model: Any) -> Any:
    return next(part for part in model.children() if isinstance(part, transformers.PreTrainedModel))


@pytest.mark.parametrize("name", READ)
def test_the_head_reads_refined_tokens_and_dense_features_are_the_backbones(name):
    host, x = BY_NAME[name], images()
    model = host.build()
    tokens = backbone_of(model)(x).last_hidden_state
    refined = formulas.refinement(tokens, 3)
    torch.testing.assert_close(host.run(model, x), model.classifier(READ[name](refined)))
    torch.testing.assert_close(backbone_of(model)(x).last_hidden_state, tokens)


def test_both_heads_of_a_distilled_deit_read_refined_tokens():
    host, x = BY_NAME["DeiTForImageClassificationWithTeacher"], images()
    model = host.build()
    output, refined = model(x), formulas.refinement(backbone_of(model)(x).last_hidden_state, 3)
    torch.testing.assert_close(output.cls_logits, model.cls_classifier(refined[:, 0]))
    torch.testing.assert_close(output.distillation_logits, model.distillation_classifier(refined[:, 1]))


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_beits_pooler_reads_refined_tokens(mean_pooling):
    host = replace(BY_NAME["BeitForImageClassification"], settings={"use_mean_pooling": mean_pooling})
    model, x = host.build(), images()
    refined = formulas.refinement(model.beit(x).last_hidden_state, 3)
    pooled = model.beit.pooler.layernorm(refined[:, 1:].mean(1)) if mean_pooling else refined[:, 0]
    torch.testing.assert_close(host.run(model, x), model.classifier(pooled))


def test_a_pooler_alone_reads_refined_tokens():
    model, x = stir(locatvit.add_locat(stir(transformers.ViTModel(VIT.settings_of_config())))), images()
    output = model(x)
    refined = formulas.refinement(output.last_hidden_state, 3)
    torch.testing.assert_close(output.pooler_output, model.pooler.dense(refined[:, 0]).tanh())


def test_siglips_pooler_reads_refined_tokens():
    host = replace(BY_NAME["SiglipForImageClassification"], name="SiglipModel", settings={})
    model, x = host.build(), images()
    output = model.vision_model(x)
    head = copy.deepcopy(model.vision_model.head)
    head._forward_pre_hooks.clear()
    torch.testing.assert_close(output.pooler_output, head(formulas.refinement(output.last_hidden_state, 3)))


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
def test_clips_image_features_are_of_the_refined_cls(name):
    host = Host(name, "CLIPConfig", 1)
    settings = host.settings_of_config()
    model = stir(getattr(transformers, name)(settings if name == "CLIPModel" else settings.vision_config))
    x = images()
    tower, plain = getattr(model, "vision_model", model), copy.deepcopy(model)
    locatvit.add_locat(model, LocAtConfig(gaug=False))
    tokens = tower(x).last_hidden_state
    normed = nn.functional.layer_norm(tokens, (24,), tower.post_layernorm.weight, tower.post_layernorm.bias)
    torch.testing.assert_close(tower(x).pooler_output, formulas.refinement(normed, 3)[:, 0])
    torch.testing.assert_close(getattr(plain, "vision_model", plain)(x).last_hidden_state, tokens)


@hosts
def test_neither_part_leaves_the_output(host):
    plain, x = host.plain(), images()
    want = host.run(plain, x)
    torch.testing.assert_close(host.run(locatvit.add_locat(plain, LocAtConfig(gaug=False, prr=False)), x), want)


@hosts
@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
def test_half_precision(host, kernel):
    """The error is not far above that of the host in the same precision."""
    plain, x = host.plain(), images()
    error = (host.run(copy.deepcopy(plain).bfloat16(), x.bfloat16()).float() - host.run(plain, x)).abs().max()
    model = locatvit.add_locat(plain, host.config_for(LocAtConfig(kernel=kernel)))
    got = host.run(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - host.run(model, x)).abs().max() <= 3 * error


def test_average_in_the_place_of_cls():
    model, x = VIT.build(LocAtConfig(pooling="avg", prr=False)), images()
    torch.testing.assert_close(model(x).logits, model.classifier(model.vit(x).last_hidden_state[:, 1:].mean(1)))


@hosts
@pytest.mark.usefixtures("compiler")
def test_one_graph(host):
    model, x = host.build().double(), images().double()  # so that rounding does not hide a difference
    want = host.run(model, x)
    compiled = torch.compile(lambda x: host.run(model, x), fullgraph=True, backend="aot_eager")
    got = compiled(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    got.square().sum().backward()
    compiled_grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    host.run(model, x).square().sum().backward()
    for name, grad in compiled_grads.items():
        torch.testing.assert_close(grad, model.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


class Run(nn.Module):
    """A model with what its forward pass needs, as a module from images to a tensor."""

    def __init__(self, host: Host, model: nn.Module) -> None:
        super().__init__()
        self.host, self.model = host, model

    def forward(self, x: Tensor) -> Tensor:
        return self.host.run(self.model, x)


@hosts
@pytest.mark.usefixtures("compiler")
def test_exported(host):
    module, x = Run(host, host.build()).eval(), images()
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-5)


@hosts
def test_checkpointed_blocks_know_their_grid(host):
    """The backward pass computes blocks again, when images of another size have passed."""
    model, x = host.build().train(), images(8, 72)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    host.run(model, x).square().sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpoint = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    checkpoint()  # the first is the name in later versions of transformers 5
    output = host.run(model, x)
    with torch.no_grad():
        host.run(model, images(24, 24))
    output.square().sum().backward()
    for name, grad in want.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad)


@hosts
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_saved_and_loaded(host, start, tmp_path):
    model, x = host.build(LocAtConfig(start=start)), images()
    want = host.run(model, x)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.locat_config == model.locat_config
    assert torch.equal(host.run(loaded.eval(), x), want)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(host.run(load_pretrained(tmp_path / "again").eval(), x), want)


@hosts
def test_loading_without_locat_is_an_error(host, tmp_path):
    host.build().save_pretrained(tmp_path)
    loaded = getattr(transformers, host.name).from_pretrained(tmp_path)
    with pytest.raises(LocAtError, match="saved with LocAt and loaded without; load it by locatvit.load_pretrained"):
        host.run(loaded, images())


def test_loading_without_this_package_is_an_error(tmp_path):
    VIT.build().save_pretrained(tmp_path)
    code = f"import transformers; transformers.AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert 'Specified `attn_implementation="locat"` is not supported' in done.stderr


def test_pretrained_weights_keep_their_names(tmp_path):
    plain = VIT.plain()
    plain.save_pretrained(tmp_path)
    model = locatvit.add_locat(transformers.ViTForImageClassification.from_pretrained(tmp_path))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert "vit.layers.1.attention.gaug.log_var.weight" in model.state_dict()


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(LocAtError, match="cannot read a transformers model at .*missing"):
        load_pretrained(tmp_path / "missing")
    VIT.plain().save_pretrained(tmp_path / "plain")
    with pytest.raises(LocAtError, match="has no LocAt; load it by transformers' from_pretrained, then call add_locat"):
        load_pretrained(tmp_path / "plain")
    model = VIT.build()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.attention.gaug" not in name}
    model.save_pretrained(tmp_path / "less", state_dict=state)
    with pytest.raises(LocAtError, match="does not fit ViTForImageClassification: missing vit.layers.1.attention.gaug"):
        load_pretrained(tmp_path / "less")


def test_another_model_of_the_same_configuration_keeps_its_attention():
    settings, x = VIT.settings_of_config(), images()
    other = stir(transformers.ViTForImageClassification(settings))
    want = other(x).logits
    locatvit.add_locat(transformers.ViTForImageClassification(settings))
    assert torch.equal(other(x).logits, want)
    assert not hasattr(settings, "locat")


def test_the_image_tower_of_clip_and_not_its_text():
    host = Host("CLIPModel", "CLIPConfig", 1)
    model, x, words = host.plain(), images(), torch.tensor([[1, 5, 2]])
    image, text = model.get_image_features(x).pooler_output, model.get_text_features(words).pooler_output
    locatvit.add_locat(model, PLAIN)
    assert len(gaugs(model)) == 2
    assert torch.equal(model.get_text_features(words).pooler_output, text)
    assert not torch.allclose(model.get_image_features(x).pooler_output, image)


def test_attention_weights_are_those_that_were_used():
    model, x = stir(locatvit.add_locat(stir(transformers.ViTModel(VIT.settings_of_config())))), images()
    values = []
    model.layers[1].attention.v_proj.register_forward_hook(lambda module, args, output: values.append(output))
    mixed = []
    model.layers[1].attention.o_proj.register_forward_pre_hook(lambda module, args: mixed.append(args[0]))
    weights = model(x, output_attentions=True).attentions[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 10))
    by_head = values[0].unflatten(-1, (3, 8)).transpose(1, 2)
    torch.testing.assert_close((weights @ by_head).transpose(1, 2).flatten(2), mixed[0])


@pytest.mark.parametrize("alpha", ["learned", "auto"])
def test_a_masked_patch_does_not_count(alpha):
    """Neither for the other tokens nor for PRR."""
    model, x = VIT.build(LocAtConfig(alpha=alpha)).double(), images().double()
    allowed = torch.ones(2, 10, dtype=torch.long)
    allowed[:, 5] = 0  # the patch in the middle of the second row
    want = model(x, attention_mask=allowed).logits
    x[:, :, 8:16, 8:16] = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x, attention_mask=allowed).logits, want)
    assert not torch.allclose(model(x).logits, want)


def test_copied_and_pickled():
    model, x = VIT.build(), images()
    want = model(x).logits
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            model(images())
        assert torch.equal(twin.eval()(x).logits, want)


def test_nothing_is_kept_after_a_pass():
    model = VIT.build(LocAtConfig(variance="input"))
    model(images())
    assert all(attention.locality.passed == [] for attention in attentions(model))


def test_another_attention_is_refused():
    model = VIT.build()
    model.set_attn_implementation("eager")
    with pytest.raises(
        LocAtError, match="attn_implementation is 'eager', which knows nothing of GAug; set it to 'locat'"
    ):
        model(images())
    model.set_attn_implementation("locat")
    model(images())


def test_masked_or_shuffled_patches_are_refused():
    host = BY_NAME["ViTMAEModel"]
    model, x = host.build(), images()
    with pytest.raises(LocAtError, match="noise is not increasing, so MAE shuffles the patches"):
        model(x)
    with pytest.raises(LocAtError, match="noise is not increasing, so MAE shuffles the patches"):
        model(x, noise=order(x).flip(-1))
    model.config.mask_ratio = 0.75
    with pytest.raises(LocAtError, match="mask_ratio is 0.75; GAug needs every patch at its place on the grid"):
        model(x, noise=order(x))


@pytest.mark.parametrize("name", ["DINOv3ViTModel", "ViTMAEModel", "Dinov2Model", "Dinov2Backbone"])
def test_prr_without_a_head_is_refused_and_the_model_left_as_it_was(name):
    family = next(
        host.config for host in HOSTS if host.name.startswith(name.removesuffix("Model").removesuffix("Backbone"))
    )
    model = getattr(transformers, name)(getattr(transformers, family)(**SIZES))
    before = list(model.state_dict()), model.config.to_dict(), model.config._attn_implementation
    with pytest.raises(LocAtError, match=f"prr is True, but {name} has no head or pooler that PRR could go before"):
        locatvit.add_locat(model)
    assert before == (list(model.state_dict()), model.config.to_dict(), model.config._attn_implementation)
    assert len(gaugs(locatvit.add_locat(model, PLAIN))) == 2


def test_other_mistakes():
    with pytest.raises(LocAtError, match="has LocAt already"):
        locatvit.add_locat(VIT.build())
    model = VIT.build()
    with pytest.raises(LocAtError, match="this ViTModel has LocAt already"):
        locatvit.add_locat(model.vit, PLAIN)
    with pytest.raises(LocAtError, match="layers is .5,.; the model's blocks are numbered 0 to 1"):
        VIT.build(LocAtConfig(layers=(5,)))
    with pytest.raises(LocAtError, match="position_embedding is False, but transformers' models add theirs always"):
        VIT.build(LocAtConfig(position_embedding=False))
    swin = transformers.SwinModel(transformers.SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=32))
    with pytest.raises(LocAtError, match="does not know the model class SwinModel"):
        locatvit.add_locat(swin)
    two = VIT.plain()
    two.other = transformers.ViTModel(VIT.settings_of_config())
    with pytest.raises(LocAtError, match="ViTForImageClassification holds ViTModel, ViTModel; add_locat takes one"):
        locatvit.add_locat(two)


def test_a_model_that_is_built_otherwise():
    model = VIT.plain()
    model.vit.layers[1].attention.query = model.vit.layers[1].attention.q_proj
    del model.vit.layers[1].attention.q_proj
    with pytest.raises(LocAtError, match="this ViTModel is not built as LocAt knows it .*q_proj.*transformers>=5.19"):
        locatvit.add_locat(model)


def test_the_library_is_not_imported_for_others():
    code = (
        "import sys, timm, locatvit\n"
        "locatvit.add_locat(timm.create_model('vit_tiny_patch16_224', depth=1))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
