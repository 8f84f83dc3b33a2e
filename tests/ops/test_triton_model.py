"""Whole models whose attention runs the fused kernels: checkpointed, under autocast, and in two processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import locatvit
from locatvit import LocAtConfig

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton, which torch brings on Linux", allow_module_level=True)

from locatvit.ops import PredictedGaussian, prediction
from locatvit.ops.attention import BACKENDS, Backend
from locatvit.ops.attention import triton as fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _run_predicted(q: Tensor, k: Tensor, v: Tensor, gaussian: PredictedGaussian, *rest: Any) -> Tensor:
    """As on a GPU: variance and alpha by kernels, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "can_run", lambda *tensors: True)
        evaluated = gaussian.evaluate()
    return fused.run_gaussian(q, k, v, evaluated, *rest)


FORCED = Backend("kernels", lambda request: None, fused.run, fused.run_gaussian, _run_predicted)
"""The kernels wherever the tensors are: on a CPU in Triton's interpreter."""


def build(backend: str) -> nn.Module:
    torch.manual_seed(0)
    model = locatvit.create_model(
        "locatvit_tiny", img_size=(24, 40), patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5,
        locat=LocAtConfig(backend=backend),
    )  # fmt: skip
    return model.to(DEVICE)


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(images).float().square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, FORCED.name, FORCED)


def check(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    largest = max(grad.abs().max() for grad in want.values())
    assert got.keys() == want.keys()
    for name, grad in got.items():
        assert (grad - want[name]).abs().max() <= bound * (want[name].abs().max() + 1e-3 * largest), name


def test_checkpointed_blocks() -> None:
    images = torch.randn(2, 3, 24, 40, device=DEVICE)
    want = gradients(build("reference"), images)
    model = build(FORCED.name)
    model.set_grad_checkpointing()
    check(gradients(model, images), want, 1e-4)


def test_autocast() -> None:
    """As close to float32 as twice the plain attention's own error."""
    images = torch.randn(2, 3, 24, 40, device=DEVICE)
    exact = build("reference")(images)
    half = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # numpy has no bfloat16 to interpret
    with torch.autocast(DEVICE, dtype=half):
        plain, kernels = build("reference")(images), build(FORCED.name)(images)
        grads = gradients(build(FORCED.name), images)
    assert (kernels.float() - exact).norm() <= 2 * (plain.float() - exact).norm() + 1e-3 * exact.norm()
    assert all(grad.isfinite().all() for grad in grads.values())
    assert all(grads[name].any() for name in grads if ".gaug." in name)


def test_two_processes(tmp_path: Path) -> None:
    """Gradients of a batch that two processes share are those of one process with all of it."""
    images = torch.randn(4, 3, 24, 40, generator=torch.Generator().manual_seed(5))
    want = gradients(build("reference").cpu(), images)  # each process has the sum over its half
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in want:
        assert torch.equal(got[0][name], got[1][name])
    check({name: 2 * grad for name, grad in got[0].items()}, want, 1e-4)  # DDP has the mean


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    BACKENDS[FORCED.name] = FORCED
    images = torch.randn(4, 3, 24, 40, generator=torch.Generator().manual_seed(5))[2 * rank : 2 * rank + 2]
    model = nn.parallel.DistributedDataParallel(build(FORCED.name).cpu())
    found = {name.removeprefix("module."): grad for name, grad in gradients(model, images).items()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(_process, (sys.argv[1],), nprocs=2)
