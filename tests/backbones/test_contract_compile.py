"""Every model compiled and exported; of the variants, those that compute something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from locatvit import LocAtConfig
from small_models import FAMILIES, NAMES, VARIANTS, Subject, cases, families, gradients, stir, subjects

pytestmark = pytest.mark.usefixtures("one_thread", "compiler")

SHALLOW: dict[bool, dict[str, Any]] = {True: {"depths": (1, 1)}, False: {"depth": 1}}
"""One block a stage, of Swin and of ViTs: what variants change is the same in each block."""


def _other_biases() -> dict[str, LocAtConfig]:
    """Variants that differ in how the bias is made, each once."""
    found = {(c.kernel, c.variance, c.alpha, c.start): name for name, c in reversed(VARIANTS.items()) if c.gaug}
    return {name: VARIANTS[name] for name in reversed(found.values()) if name != "paper"}


OTHER_BIASES = _other_biases()


def check_compiled(subject: Subject, config: LocAtConfig, backend: str, **kwargs: Any) -> None:
    """One graph, with the outputs and gradients of the model."""
    model, images, cotangent = stir(subject.build(config, **kwargs)), subject.images(), torch.randn(2, 5)
    want, wanted = model(images), gradients(model, images, cotangent)
    model.zero_grad()
    logits = torch.compile(model, fullgraph=True, backend=backend)(images)
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-5)
    (logits * cotangent).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4)


@subjects(lambda subject: subject.name in NAMES)
def test_models_are_one_graph(subject):
    check_compiled(subject, LocAtConfig(), "aot_eager")


@pytest.mark.slow
@subjects(lambda subject: subject.name not in NAMES)
def test_other_hosts_are_one_graph(subject):
    check_compiled(subject, LocAtConfig(), "aot_eager", **SHALLOW[subject.is_windowed])


@pytest.mark.parametrize("config", OTHER_BIASES.values(), ids=OTHER_BIASES)
def test_variants_of_a_vit_are_one_graph(config):
    check_compiled(FAMILIES["ViT"], config, "eager", depth=1)


@pytest.mark.slow
@cases(lambda subject, config: config in OTHER_BIASES.values())
def test_variants_of_every_family_are_one_graph(subject, config):
    check_compiled(subject, config, "aot_eager", **SHALLOW[subject.is_windowed])


@pytest.mark.slow
@families
def test_compiled_to_machine_code(subject):
    check_compiled(subject, LocAtConfig(), "inductor", **SHALLOW[subject.is_windowed])


@torch.no_grad()
def check_sizes(subject: Subject, dynamic: bool | None) -> None:
    """The compiled model and the model take turns; the first two sizes have the same number of patches."""
    model = stir(subject.build(**subject.any_size, **SHALLOW[subject.is_windowed]))
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
    batches = [subject.images(*size) for size in (*subject.equal_counts, (40, 56))[: 3 if dynamic is None else 2]]
    for images in batches * 2:
        torch.testing.assert_close(compiled(images), model(images))


@families
def test_a_graph_for_each_size(subject):
    check_sizes(subject, dynamic=False)


@pytest.mark.slow
@families
def test_one_graph_for_several_sizes(subject):
    check_sizes(subject, dynamic=None)


@torch.no_grad()
def test_compiled_with_a_mask_and_without():
    subject = FAMILIES["ViT"]
    model, images = stir(subject.build(depth=1)), subject.images()
    allowed = torch.ones(10, 10, dtype=torch.bool).tril()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for mask in (allowed, None, allowed):
        torch.testing.assert_close(compiled(images, attn_mask=mask), model(images, attn_mask=mask))


@families
def test_exports(subject):
    check_exported(subject, LocAtConfig())


def test_exports_a_dense_bias():
    check_exported(FAMILIES["ViT"], LocAtConfig(kernel="laplace"))


def check_exported(subject: Subject, config: LocAtConfig) -> None:
    model, images = stir(subject.build(config)), subject.images()
    program = torch.export.export(model, (images,))
    other = subject.images()
    torch.testing.assert_close(program.module()(other), model(other))
