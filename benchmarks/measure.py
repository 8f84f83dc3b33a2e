"""Steps, times and correctness of one case."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from locatvit import LocAtConfig, add_locat
from locatvit.analysis.timing import Step, by_turns, forward_step, training_step
from locatvit.errors import LocAtError

# float32 against float32, through a whole model; as in the tests of exactness
_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4


def make(case: Case, kind: str) -> tuple[nn.Module, Tensor]:
    """The model and its images; kind is ``"plain"`` or ``"locat"``. The same weights and images for both."""
    torch.manual_seed(0)
    model = timm.create_model(case.model, **case.model_kwargs)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    if kind == "locat":
        add_locat(model)
    return model.train(case.train), images


def make_step(case: Case, kind: str) -> Step:
    """What is timed, and what memory is measured of."""
    return (training_step if case.train else forward_step)(*make(case, kind))


def verify(case: Case) -> None:
    """Compare one image's output, and in training all gradients, with ``backend="reference"``.

    Raises:
        LocAtError: they differ by more than rounding; then there is nothing to report.
    """
    model, images = make(case, "locat")
    reference = add_locat(timm.create_model(case.model, **case.model_kwargs), LocAtConfig(backend="reference"))
    reference.load_state_dict(model.state_dict())
    output, gradients = _output_and_gradients(case, model, images[:1])
    true_output, true_gradients = _output_and_gradients(case, reference.train(case.train), images[:1])
    _compare(case, "output", output, true_output, _OUTPUT_TOLERANCE)
    for name, gradient in gradients.items():
        _compare(case, f"gradient of {name}", gradient, true_gradients[name], _GRADIENT_TOLERANCE)


def _output_and_gradients(case: Case, model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.set_grad_enabled(case.train):
        output = model(images)
    if not case.train:
        return output, {}
    output.square().mean().backward()
    # a bias of the keys shifts all logits of a query alike: the gradient of qkv's bias is in part rounding only
    names = [name for name, _ in model.named_parameters() if not name.endswith("qkv.bias")]
    return output.detach(), {name: model.get_parameter(name).grad for name in names}  # type: ignore[misc]


def _compare(case: Case, what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= tolerance:
        raise LocAtError(
            f"{case.name}: the {what} is off by {error:.1e} of its largest value, more than {tolerance:.0e}, from "
            "backend='reference'; no time is reported over a wrong result: run the tests of the op first"
        )


def times(case: Case, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of single steps, plain and LocAt: warmed up, then by turns, for so long and at least 5 times each."""
    plain, locat = by_turns([make_step(case, kind) for kind in ("plain", "locat")], seconds)
    return plain, locat
