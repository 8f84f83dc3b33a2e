"""Which backends serve a model, and what its attentions ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from locatvit import LocAtConfig, LocAtError
from locatvit.ops.attention import BACKENDS, Backend, Request
from locatvit.recipes.profile_backends import ask, profile_backends, requests_of
from locatvit.recipes.profile_config import ProfileConfig, ProfileModel
from locatvit.recipes.profile_tables import backends_table
from small_models import FAMILIES, Subject, families

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
REQUEST = Request("cuda", torch.bfloat16, 64, 197, 1, (14, 14), needs_grad=True)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_requests_are_those_of_a_real_pass(
    subject: Subject, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: list[Request] = []
    spy = Backend("spy", real.append, BACKENDS["sdpa"].run)
    monkeypatch.setitem(BACKENDS, "spy", spy)
    model = subject.build(LocAtConfig(backend="spy")).train(training)
    images = subject.images()
    with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(images)
    assert real
    found = requests_of(model, (len(images), *images.shape[2:]), dtype=dtype, training=training)
    assert found == real
    assert all(request.needs_grad == training for request in found)


def test_nothing_is_left_behind() -> None:
    model = FAMILIES["ViT"].build(LocAtConfig(backend="reference"))
    before, parameters = dict(BACKENDS), {name: value.clone() for name, value in model.state_dict().items()}
    requests_of(model, (2, 24, 24), training=True)
    with pytest.raises(AssertionError):  # timm's word on another size
        requests_of(model, (2, 40, 24))
    assert before == BACKENDS
    assert all(block.attn.backend == "reference" for block in model.blocks)
    assert model.training
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_that_can_is_taken() -> None:
    assert [answer.backend for answer in ask(REQUEST)] == list(BACKENDS)
    assert [answer.backend for answer in ask(REQUEST) if answer.chosen] == ["triton"]
    on_cpu = ask(replace(REQUEST, device_type="cpu"))
    assert [answer.backend for answer in on_cpu if answer.chosen] == ["sdpa"]
    assert on_cpu[0].why_not == "it runs on CUDA devices, and this is cpu"


def test_one_that_is_asked_for() -> None:
    assert [answer.backend for answer in ask(REQUEST, "reference") if answer.chosen] == ["reference"]
    refused = ask(replace(REQUEST, dropout_p=0.1), "triton")
    assert not any(answer.chosen for answer in refused)
    with pytest.raises(LocAtError, match="backend 'tritn' is unknown; did you mean triton"):
        ask(REQUEST, "tritn")


def test_attentions_that_ask_for_the_same_are_counted() -> None:
    """Swin of two stages of 2 and 1 blocks: windows at rest and shifted, and other numbers of heads."""
    kwargs = {"img_size": 48, "patch_size": 4, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4), "window_size": 3}
    config = ProfileConfig(ProfileModel("locatswin_tiny", kwargs), backward=True)
    found = profile_backends(config, "cuda")
    shapes = [(each.count, each.request.attn_bias_shape) for each in found.attentions]
    assert shapes == [(1, (1, 2, 9, 9)), (1, (16, 2, 9, 9)), (1, (1, 4, 9, 9))]
    assert all(each.request.attn_bias_needs_grad for each in found.attentions)
    assert found.config.batch_size == 128
    table, notes = backends_table(found)
    assert [row[0] for row in table.rows] == [
        "1 attention, 3 x 3 tokens, heads of 16, attn_bias 1 x 2 x 9 x 9",
        "1 attention, 3 x 3 tokens, heads of 16, attn_bias 16 x 2 x 9 x 9",
        "1 attention, 3 x 3 tokens, heads of 16, attn_bias 1 x 4 x 9 x 9",
        *(f"  {name}" for name in BACKENDS),
    ]
    assert table.rows[3][1] == "yes: this one is taken"
    assert table.caption.endswith("128 images at a time, float32, forward + backward, on cuda.")
    assert notes[0].startswith("Backends are in order of preference")


def test_dropout_is_part_of_the_question() -> None:
    config = ProfileConfig(ProfileModel("locatvit_tiny", {**SMALL, "attn_drop_rate": 0.1}), backward=True)
    (attentions,) = profile_backends(config, "cuda").attentions
    assert attentions.request.dropout_p == 0.1
    assert [answer.backend for answer in attentions.answers if answer.chosen] == ["sdpa"]
    rows = dict(backends_table(profile_backends(config, "cuda"))[0].rows)
    assert rows["2 attentions, 3 x 3 + 1 tokens, heads of 16, dropout 0.1"] == ""
    assert rows["  triton"] == "no: it has no dropout"


@pytest.mark.parametrize("locat", [LocAtConfig(kernel="laplace"), LocAtConfig(gaug=False)])
def test_a_model_that_asks_no_backend(locat: LocAtConfig) -> None:
    found = profile_backends(ProfileConfig(ProfileModel("locatvit_tiny", SMALL, locat)))
    assert found.attentions == ()
    table, notes = backends_table(found)
    assert table.rows == (("attentions that ask for a backend", "none"),)
    assert notes == [
        "Without GAug there is no bias; and one that is no product of two factors goes to torch's own attention, as a "
        "dense mask."
    ]


def test_a_backend_that_cannot_run_is_told() -> None:
    model = ProfileModel("locatvit_tiny", SMALL, LocAtConfig(backend="flex"))
    table, notes = backends_table(profile_backends(ProfileConfig(model, backward=True), "cpu"))
    assert not any("taken" in row[1] for row in table.rows)
    assert notes == ["model.locat.backend is 'flex', which cannot run: the model stops with that reason."]


@pytest.mark.parametrize(
    ("config", "device", "message"),
    [
        (ProfileConfig(ProfileModel("locatvit_tinny")), None, "model 'locatvit_tinny' is unknown; did you mean"),
        (ProfileConfig(ProfileModel("resnet18")), None, "add_locat does not know the model class ResNet"),
        (ProfileConfig(precision="fp8"), None, "precision is 'fp8'; it must be one of no, bf16, fp16"),
        (ProfileConfig(), "gpu", "device is 'gpu'; it must be one that torch knows, such as cpu or cuda"),
        (ProfileConfig(ProfileModel("locatvit_tiny", {"depht": 3})), "cuda", "'locatvit_tiny' cannot be created with"),
    ],
)
def test_what_cannot_be_asked(config: ProfileConfig, device: str | None, message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        profile_backends(config, device)
