"""What a model costs by its shapes alone: parameters, and the multiply-adds of one image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, UnsupportedFakeTensorException
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from locatvit.errors import LocAtError
from locatvit.layers import PatchRefinement

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
    with _evaluation_mode(model), _refinement_left_out(model) as left_out, _refusals_told(model, image_size):
        _run_on_shapes(model, image_size, counter)
    runs = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, runs, runs + sum(left_out))


def _run_on_shapes(model: nn.Module, image_size: tuple[int, int], counter: FlopCounterMode) -> None:
    # fake tensors are a CPU's in float32 here, whatever the model's are, and attention is its two plain products
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        values = {
            name: torch.empty(
                value.shape, dtype=torch.float32 if value.is_floating_point() else value.dtype, device="cpu"
            )
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }
        image = torch.empty(1, 3, *image_size, device="cpu")
        with counter:
            # each tensor is replaced under one name: torch does not put back a module that has several
            functional_call(model, values, (image,), tie_weights=False)


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


def _pieces_forward(q: Shape, k: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of q kᵀ and of the weights times v."""
    batch, heads, queries, width = q
    return 2 * 2 * batch * heads * queries * k[2] * width


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


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _flat(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
