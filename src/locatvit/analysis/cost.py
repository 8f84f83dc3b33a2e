"""What a model costs by its shapes alone: parameters, and the multiply-adds of one image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, UnsupportedFakeTensorException
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from locatvit.errors import LocAtError
from locatvit.layers import LocalityAttention, PatchRefinement

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Of one model and one image.

    Attributes:
        parameters: all, trainable or not; buffers are none.
        multiply_adds: of matrix products and convolutions in a forward pass in evaluation mode, the attention's two
            products included; a bias is one term more. Softmax, exponentials, norms and other things that are done
            element by element count nothing.
        paper_multiply_adds: the same with PRR computed for every token. A head that reads [CLS] needs one row of it,
            and one is what runs here; the authors' code, and so the paper's FLOPs, have all.
    """

    parameters: int
    multiply_adds: int
    paper_multiply_adds: int


def count(model: nn.Module, image_size: tuple[int, int]) -> Cost:
    """Parameters and multiply-adds; nothing is computed and no memory taken, so the model may be on any device.

    On ``torch.device("meta")`` it need not even have weights.

    Args:
        model: takes images [B, 3, height, width].
        image_size: (height, width) of the image, in pixels.

    Raises:
        LocAtError: the model refuses images of this size, or what it does depends on more than their shape.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with (
        with_backend(model, "sdpa"),  # all make the same two products; the counter knows them of this one
        sdpa_kernel(SDPBackend.MATH),  # attention without a bias is two plain products, too
        _refinement_left_out(model) as left_out,
        _refusals_told(model, image_size),
    ):
        run_on_shapes(model, (1, *image_size), counter)
    runs = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, runs, runs + sum(left_out))


def run_on_shapes(
    model: nn.Module, images: tuple[int, int, int], during: AbstractContextManager[Any], *, training: bool = False
) -> None:
    """A forward pass of shapes alone: nothing is computed and no memory taken.

    Tensors are a CPU's in float32, whatever the model's are. In training, weights ask for gradients where the model's
    do.

    Args:
        model: takes images [B, 3, height, width]; on any device, also on ``torch.device("meta")``.
        images: how many, and their (height, width) in pixels.
        during: what is on in the meantime, such as a counter.
        training: in training mode and with gradients.
    """
    number, *size = images
    with FakeTensorMode(allow_non_fake_inputs=True), in_mode(model, training), torch.set_grad_enabled(training):
        values = {name: _on_cpu(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
        image = torch.empty(number, 3, *size, device="cpu")
        with during:
            # each tensor is replaced under one name: torch does not put back a module that has several
            functional_call(model, values, (image,), tie_weights=False)


def _on_cpu(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    asks = value.requires_grad and torch.is_grad_enabled()  # without gradients the counter must not look for them
    return torch.empty(value.shape, dtype=dtype, device="cpu", requires_grad=asks)


@contextmanager
def with_backend(model: nn.Module, name: str) -> Iterator[None]:
    """Every attention with GAug asks for this backend; its own name is put back after."""
    holders: list[Any] = [module for module in model.modules() if isinstance(module, LocalityAttention)]
    holders += [module.locality for module in model.modules() if hasattr(module, "locality")]  # transformers'
    names = [holder.backend for holder in holders]
    for holder in holders:
        holder.backend = name
    try:
        yield
    finally:
        for holder, own in zip(holders, names, strict=True):
            holder.backend = own


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode; every module's own is put back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _refusals_told(model: nn.Module, image_size: tuple[int, int]) -> Iterator[None]:
    name, (height, width) = type(model).__name__, image_size
    try:
        yield
    except (DataDependentOutputException, UnsupportedFakeTensorException) as error:
        raise LocAtError(f"{name} cannot be counted: what it does depends on values, {_flat(error)}") from error
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise LocAtError(
            f"{name} refuses images of {height} x {width} pixels: {_flat(error).rstrip('.')}. Give the size that it "
            "is made for, or make it for this one"
        ) from error


def _linear(bias: Shape, a: Shape, b: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of a b + bias, in torch's unit: a multiply-add is two."""
    (rows, width), columns = a, b[1]
    return 2 * rows * columns * (width + 1)


def _pieces_forward(q: Shape, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Of q kᵀ, of the weights times v, and of GAug's three outputs a patch where they are predicted there."""
    batch, heads, tokens, width = q
    prediction, num_prefix_tokens = rest[6], rest[7]
    outputs = 3 * (tokens - num_prefix_tokens) if prediction else 0
    return 2 * batch * heads * (2 * tokens * tokens * width + outputs * (width + 1))


# What torch counts without its bias, and what it does not know: formulas of shapes.
_FORMULAS = {
    torch.ops.aten.addmm: _linear,
    torch.ops.locatvit.pieces_forward: _pieces_forward,
}


@contextmanager
def _refinement_left_out(model: nn.Module) -> Iterator[list[int]]:
    """The multiply-adds, by call, of the rows of PRR that the head does not read and that are not computed."""
    left_out: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        tokens: Tensor = given["x"]
        batch, length, width = tokens.shape
        queries = given.get("num_queries")
        # Eq. 11 is two products of [rows, K] and [K, L] for each of the D / K heads
        left_out.append(0 if queries is None else 2 * batch * (length - queries) * length * width)

    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, PatchRefinement)
    ]
    try:
        yield left_out
    finally:
        for handle in handles:
            handle.remove()


def _flat(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
