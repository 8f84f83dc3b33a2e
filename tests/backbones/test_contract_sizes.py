"""Other image sizes than the trained one, for every model with every variant."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

import locatvit
from locatvit import LocAtConfig
from locatvit.layers import GAug
from locatvit.ops.distance import KERNELS
from small_models import Subject, cases, families, gaugs, locality_attentions, small_kwargs, stir, subjects

pytestmark = pytest.mark.usefixtures("one_thread")

# Patches of 8 pixels, 3 x 3 in training: 2 x 6, 3 x 4, sides that are no multiple, and a large one.
_VIT = [(24, 24), (16, 48), (24, 32), (35, 50), (64, 56)]
# Patches of 4 pixels in windows of 3 x 3, 12 x 12 in training: 6 x 24, 13 x 9 and 25 x 21.
_SWIN = [(48, 48), (24, 96), (52, 36), (100, 84)]


def sizes(subject: Subject) -> list[tuple[int, int]]:
    return _SWIN if subject.is_windowed else _VIT


@cases(lambda subject, config: subject.takes_any_size)
def test_sizes_in_alternation_are_as_each_alone(subject, config):
    model = stir(subject.build(config, **subject.any_size))
    batches = [subject.images(*size) for size in sizes(subject)]
    alone = [copy.deepcopy(model)(images) for images in batches]
    assert all(logits.shape == (2, 5) and logits.isfinite().all() for logits in alone)
    for images, want in [*zip(batches, alone, strict=True), (batches[0], alone[0])]:
        assert torch.equal(model(images), want)


@cases(lambda subject, config: subject.takes_any_size)
def test_a_copy_follows_its_own_images(subject, config):
    """What tells the attentions the size is copied with them."""
    model = stir(subject.build(config, **subject.any_size))
    one, other = (subject.images(*size) for size in subject.equal_counts)
    want = model(one)
    twin = copy.deepcopy(model)
    twin(other)
    assert torch.equal(model(one), want)
    assert torch.equal(twin(one), want)


@cases(lambda subject, config: subject.takes_any_size)
def test_gradients_after_another_size_has_passed(subject, config):
    """Also after a pass in inference mode, whose tensors no backward pass may save."""
    model = stir(subject.build(config, **subject.any_size))
    one, other = (subject.images(*size) for size in subject.equal_counts)
    model(one).square().sum().backward()
    want = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with torch.inference_mode():
        model(one), model(other)
    logits = model(one)
    model(other)
    logits.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        assert torch.equal(parameter.grad, gradient)


@cases(lambda subject, config: subject.takes_any_size and hasattr(subject.on_meta, "set_input_size"))
def test_set_input_size_is_as_any_size(subject, config):
    """Also to a size with as many patches, which the geometry alone tells from the trained one."""
    model = stir(subject.build(config, **subject.any_size))
    # else timm scales the windows, too
    windows = {"window_size": small_kwargs(subject.name)["window_size"]} if subject.is_windowed else {}
    for size in (subject.equal_counts[0], (40, 56)):
        fixed = subject.build(config).eval()
        fixed.load_state_dict(model.state_dict())
        fixed.set_input_size(size, **windows)
        images = subject.images(*size)
        torch.testing.assert_close(fixed(images), model(images))


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # timm resamples Swin's tables there
@cases(lambda subject, config: subject.is_windowed)
def test_gaugs_window_follows_set_input_size(subject, config):
    model = stir(subject.build(config))
    model.set_input_size((80, 96))
    assert {attention.grid_of(30) for attention in locality_attentions(model)} <= {(5, 6)}
    assert model(subject.images(80, 96)).isfinite().all()


@subjects(lambda subject: subject.takes_any_size and not subject.is_windowed)
def test_padding_is_zeros_at_the_lower_and_right_edge(subject):
    model = stir(subject.build(**subject.any_size))
    images = subject.images(35, 50)
    padded = F.pad(images, (0, 6, 0, 5))
    assert torch.equal(model(images), model(padded))
    assert locatvit.extract_features(model, images).grid_size == (5, 7)


@families
def test_threads_do_not_disturb_each_other(subject):
    model = stir(subject.build(**subject.any_size))
    inputs = [subject.images(*size) for size in subject.equal_counts]
    want = [model(images) for images in inputs]
    wrong: list[bool] = []

    def work(index: int) -> None:
        with torch.no_grad():
            wrong.extend(not torch.allclose(model(inputs[index]), want[index], atol=1e-6) for _ in range(20))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 40


def check_checkpointing(subject: Subject, config: LocAtConfig, *pair: tuple[int, int]) -> None:
    """Blocks run again, in the backward pass, after images of another size have passed."""
    model = stir(subject.build(config, **subject.any_size))
    one, other = (subject.images(*size) for size in pair)

    def gradients() -> tuple[torch.Tensor, ...]:
        together = model(one).square().sum() + model(other).square().sum()
        return torch.autograd.grad(together, list(model.parameters()))

    want = gradients()
    model.set_grad_checkpointing()
    calls: list[GAug] = []
    for gaug in gaugs(model):
        gaug.register_forward_hook(lambda module, _args, _out: calls.append(module))
    for got, wanted in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, wanted)
    assert len(calls) == 4 * len(gaugs(model))


@cases(lambda subject, config: subject.takes_any_size)
def test_checkpointed_blocks_give_equal_gradients_for_two_sizes(subject, config):
    check_checkpointing(subject, config, *sizes(subject)[-2:])


@pytest.fixture
def swept() -> Iterator[None]:
    """A backward pass that failed leaves its graph to the next one; left to the end of the process, torch crashes."""
    yield
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("kernel", KERNELS)
@families
def test_checkpointed_blocks_tell_sizes_with_as_many_patches_apart(subject, kernel):
    check_checkpointing(subject, LocAtConfig(kernel=kernel), *subject.equal_counts)
