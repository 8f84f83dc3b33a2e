"""Times, peak memory and correctness of one case."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from benchmarks.cases import CASES, Case
from locatvit import LocAtConfig, add_locat
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


def step_of(case: Case, model: nn.Module, images: Tensor) -> Callable[[], None]:
    """What is timed."""

    def train() -> None:
        model(images).square().mean().backward()
        model.zero_grad()

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return train if case.train else forward


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
    steps = [step_of(case, *make(case, kind)) for kind in ("plain", "locat")]
    taken: tuple[list[float], list[float]] = ([], [])
    for step in steps * 2:
        step()
    end = time.perf_counter() + seconds
    while len(taken[0]) < 5 or time.perf_counter() < end:
        for index in (0, 1) if len(taken[0]) % 2 else (1, 0):
            start = time.perf_counter()
            steps[index]()
            taken[index].append(time.perf_counter() - start)
    return taken


def _print_peak_memory(name: str, kind: str, threads: int) -> None:
    """Bytes at the peak of two steps above those of the started process; for a process of its own."""
    torch.set_num_threads(threads)
    case = next(case for case in CASES if case.name == name)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = step_of(case, *make(case, kind))
    step()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps((peak - started) * (1 if sys.platform == "darwin" else 1024)))


if __name__ == "__main__":
    _print_peak_memory(sys.argv[1], sys.argv[2], int(sys.argv[3]))
