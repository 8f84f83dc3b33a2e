"""GAug and PRR alone against the authors' implementation; see tests/golden/README.md."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from locatvit.config import LocAtConfig
from locatvit.layers import GAug, PatchRefinement

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402

CASES = {"gaug_14x14_cls": ((14, 14), 1), "gaug_7x7_window": ((7, 7), 0)}
VARIANTS = {
    "formula_exact": LocAtConfig(variance_floor=0, distance_clamp=False),
    "formula_exact_eps": LocAtConfig(distance_clamp=False),
    "formula_exact_eps_clamp": LocAtConfig(),
    "official_f64": LocAtConfig(),
}


def _gaug(grid_size, config, dtype):
    gaug = GAug(64, grid_size, config)
    names = {name: f"blocks.0.attn.gaug.{name}" for name in gaug.state_dict()}
    arrays = recipe.init_state({names[k]: tuple(v.shape) for k, v in gaug.state_dict().items()})
    gaug.load_state_dict({name: torch.from_numpy(arrays[names[name]]) for name in names})
    return gaug.to(dtype)


def _queries(golden, dtype):
    batch, heads, tokens, _ = (int(n) for n in golden["shape"])
    return torch.from_numpy(recipe.make_input((batch, heads, tokens, 64), "gaug_q")).to(dtype)


def _padded_bias(gaug, grid_size, prefix, q):
    row, column = gaug(q, grid_size).factors()
    dense = (row[..., :, None] * column[..., None, :]).flatten(-2)
    return torch.nn.functional.pad(dense, (prefix, 0, prefix, 0))


def _close(got, want, relative):
    got, want = got.detach().double().numpy().reshape(-1), np.asarray(want, np.float64).reshape(-1)
    assert np.abs(got - want).max() <= relative * np.abs(want).max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bias_in_double(case, variant):
    golden, (grid_size, prefix) = np.load(GOLDEN / f"{case}.npz"), CASES[case]
    gaug = _gaug(grid_size, VARIANTS[variant], torch.float64)
    q = _queries(golden, torch.float64)
    bias = _padded_bias(gaug, grid_size, prefix, q[:, :, prefix:])
    _close(bias.flatten()[:: int(golden["step"])], golden[variant], 1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "relative"), [(torch.float64, "f64", 1e-11), (torch.float32, "f32", 1e-5)])
def test_bias_gradients(case, dtype, suffix, relative):
    golden, (grid_size, prefix) = np.load(GOLDEN / f"{case}.npz"), CASES[case]
    gaug = _gaug(grid_size, LocAtConfig(), dtype)
    q = _queries(golden, dtype).requires_grad_()
    bias = _padded_bias(gaug, grid_size, prefix, q[:, :, prefix:])
    cotangent = torch.from_numpy(recipe.make_input(tuple(bias.shape), "gaug_cotangent")).to(dtype)
    (bias * cotangent).sum().backward()
    _close(bias.flatten()[:: int(golden["step"])], golden[f"official_{suffix}"], relative)
    _close(q.grad.flatten()[:: int(golden["grad_q_step"])], golden[f"grad_q_{suffix}"], relative)
    for name, parameter in gaug.named_parameters():
        _close(parameter.grad, golden[f"grad_{name.replace('.', '_')}_{suffix}"], relative)


@pytest.mark.parametrize(("dtype", "suffix", "relative"), [(torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-5)])
def test_refinement(dtype, suffix, relative):
    golden = np.load(GOLDEN / "prr_tokens.npz")
    batch, tokens, width = (int(n) for n in golden["shape"])
    x = torch.from_numpy(recipe.make_input((batch, tokens, width), "prr_x")).to(dtype).requires_grad_()
    refined = PatchRefinement(width, int(golden["heads"]))(x)
    cotangent = torch.from_numpy(recipe.make_input(tuple(refined.shape), "prr_cotangent")).to(dtype)
    (refined * cotangent).sum().backward()
    step = int(golden["step"])
    _close(refined.flatten()[::step], golden[f"official_{suffix}"], relative)
    _close(x.grad.flatten()[::step], golden[f"grad_x_{suffix}"], relative)
