"""A model with LocAt whose attentions and PRR are written out from the formulas; the rest of it is the host's."""

from __future__ import annotations

import copy
import math

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

import formulas
import golden_case
from locatvit import LocAtConfig
from locatvit.layers import LocalityAttention, PatchRefinement

_OURS = (LocalityAttention, PatchRefinement)


def by_hand(model: nn.Module, grid: tuple[int, int] | None = None) -> nn.Module:
    """A copy of ``model`` that computes with the formulas; ``grid`` is that of the images to come, None in windows."""
    twin = copy.deepcopy(model)
    ours = [(name, module) for name, module in twin.named_modules() if isinstance(module, _OURS)]
    for name, module in ours:
        parent = twin.get_submodule(name.rpartition(".")[0])
        if isinstance(module, LocalityAttention):
            setattr(parent, name.rpartition(".")[2], HandAttention(module, twin.locat_config, grid))
        else:
            setattr(parent, name.rpartition(".")[2], HandRefinement(module.num_heads))
    return twin


VARIANTS = {
    "the paper's": LocAtConfig(),
    "as printed": LocAtConfig(variance_floor=0, distance_clamp=False),
    "laplace": LocAtConfig(kernel="laplace"),
    "inverse distance": LocAtConfig(kernel="inverse_distance", distance_clamp=False),
    "laplace from input": LocAtConfig(kernel="laplace", variance="input", variance_scaling="area"),
    "inverse distance, fixed": LocAtConfig(kernel="inverse_distance", variance=2.5, alpha="none"),
    "variance from input": LocAtConfig(variance="input"),
    "isotropic": LocAtConfig(variance="isotropic", variance_scaling="area"),
    "fixed width": LocAtConfig(variance=4.0),
    "fixed width, no scaling": LocAtConfig(variance=4.0, alpha="none", variance_scaling="none"),
    "no scaling": LocAtConfig(alpha="none"),
    "automatic scaling": LocAtConfig(alpha="auto"),
    "automatic, from input": LocAtConfig(alpha="auto", variance="input"),
    "GAug alone": LocAtConfig(prr=False),
    "PRR alone": LocAtConfig(gaug=False),
    "GAP": LocAtConfig(gaug=False, prr=False, pooling="avg"),
    "GAug and GAP": LocAtConfig(prr=False, pooling="avg"),
    "second block": LocAtConfig(layers=(1,)),
}
"""LocAt's settings, one or two changed at a time."""


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that they have in the model with LocAt."""
    return {name.replace(".ours.", "."): value for name, value in model.named_parameters()}


def compare(model: nn.Module, images: Tensor, grid: tuple[int, int] | None) -> None:
    """Outputs and every gradient, of the model and of its copy with the formulas."""
    model = model.double().eval()
    twin = by_hand(model, grid)
    got, want = model(images), twin(images)
    assert golden_case.relative(got.detach(), want.detach()) < 1e-11
    cotangent = torch.randn_like(got)
    own, others = dict(model.named_parameters()), parameters(twin)
    assert own.keys() == others.keys()
    grads = torch.autograd.grad(got, list(own.values()), cotangent, allow_unused=True)
    wanted = torch.autograd.grad(want, [others[name] for name in own], cotangent, allow_unused=True)
    largest = max(grad.abs().max() for grad in wanted if grad is not None)
    for name, a, b in zip(own, grads, wanted, strict=True):
        a, b = (torch.zeros_like(own[name]) if grad is None else grad for grad in (a, b))
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-13 * largest, name


class HandAttention(nn.Module):
    """Eq. 4 with every variant, of any host."""

    def __init__(self, ours: LocalityAttention, config: LocAtConfig, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.ours, self.config, self.grid = ours, config, grid

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope: Tensor | None = None,
        shared_rel_pos_bias: Tensor | None = None,  # BEiT's
        shared_rel_pos: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        host, prefix = self.ours, self.ours.num_prefix_tokens
        q, k, v = self.projections(x)
        bias = self.bias(q[:, :, prefix:], k[:, :, prefix:], x[:, prefix:])
        bias = formulas.padded(bias, prefix) + self.tables(len(x), mask)
        for shared in (shared_rel_pos_bias, shared_rel_pos):
            bias = bias if shared is None else bias + shared
        if rope is not None:
            half = getattr(host, "rotate_half", False)
            q, k = (
                torch.cat([t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=half)], 2) for t in (q, k)
            )
        out = formulas.attention(q, k, v, bias).transpose(1, 2).flatten(2)
        norm, gate = getattr(host, "norm", None), getattr(host, "gate", None)
        out = out if norm is None else norm(out)
        return host.proj(out if gate is None else out * torch.sigmoid(gate(x)))

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one layer with a bias, one with the biases beside it, or three layers; normed."""
        host = self.ours
        if getattr(host, "qkv", None) is None:
            parts = [layer(x) for layer in (host.q_proj, host.k_proj, host.v_proj)]
        elif getattr(host, "q_bias", None) is not None:  # the keys have none
            plain = (x @ host.qkv.weight.T).chunk(3, dim=-1)
            parts = [plain[0] + host.q_bias, plain[1], plain[2] + host.v_bias]
        else:
            parts = list(host.qkv(x).chunk(3, dim=-1))
        q, k, v = (part.unflatten(-1, (host.num_heads, -1)).transpose(1, 2) for part in parts)
        return (host.q_norm(q), host.k_norm(k), v) if hasattr(host, "q_norm") else (q, k, v)

    def tables(self, batch: int, mask: Tensor | None) -> Tensor | float:
        """What the host adds to the logits for the places of tokens."""
        host = self.ours
        if getattr(host, "rel_pos", None) is not None:
            return host.rel_pos.get_bias()
        if getattr(host, "relative_position_bias_table", None) is None:
            return 0.0
        return self.in_window(batch, mask) if host.num_prefix_tokens == 0 else self.beside_cls()

    def beside_cls(self) -> Tensor:
        """BEiT's: of patches as Swin's, and behind them [CLS] to patches, patches to [CLS], [CLS] to itself."""
        table = self.ours.relative_position_bias_table
        among = self.in_window(1, None)
        bias = table.new_zeros(len(among), among.shape[-1] + 1, among.shape[-1] + 1)
        bias[:, 1:, 1:] = among
        bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = table[-3][:, None], table[-2][:, None], table[-1]
        return bias

    def bias(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """alpha G, [B, H, N, N]."""
        config, gaug = self.config, self.ours.gaug
        grid = self.grid or self.ours.window_size
        cap = (max(gaug.trained_grid) - 1) ** 2 if config.distance_clamp else math.inf
        width = self.width(q, x, grid)
        if config.kernel == "gaussian":
            values = formulas.gaussian(width.expand(*width.shape[:-1], 2), *grid, cap)
        else:
            values = getattr(formulas, config.kernel)(width[..., 0], *grid, cap)
        if config.alpha == "learned":
            return F.softplus(q @ gaug.log_alpha.weight.T + gaug.log_alpha.bias) * values
        if config.alpha == "auto":
            return formulas.automatic_alpha(q, k)[..., None] * values
        return values

    def width(self, q: Tensor, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Variances or widths with the floor, [B, H, N, 1 or 2]."""
        config, gaug = self.config, self.ours.gaug
        trained = gaug.trained_grid
        factor = 1.0
        if tuple(grid) != tuple(trained) and config.variance_scaling != "none":
            factor = min(grid) / min(trained)
            if config.variance_scaling == "area" and config.kernel == "gaussian":
                factor = factor**2
        if not isinstance(config.variance, str):
            return q.new_full((*q.shape[:-1], 1), config.variance * factor)
        if config.variance == "input":
            logits = x @ gaug.log_var.weight.T + gaug.log_var.bias
            logits = logits.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
        else:
            logits = q @ gaug.log_var.weight.T + gaug.log_var.bias
        top, floor = max(trained) ** 2, config.variance_floor
        if floor == "auto":
            floor = 0.1
            while 0.5 * (max(trained) - 1) ** 2 / floor**2 > 32500:
                floor *= 2
        if top <= 2:
            return top * torch.sigmoid(logits) * factor + floor
        return formulas.variance(logits, top) * factor + floor

    def in_window(self, windows: int, mask: Tensor | None) -> Tensor:
        """Swin's own bias: a number for each offset of two patches and each head, and the mask of the shift."""
        table = self.ours.relative_position_bias_table
        height, width = self.ours.window_size
        place = formulas.positions(height, width, table).long()
        offset = place[:, None] - place[None] + torch.tensor([height - 1, width - 1])
        bias = table[offset[..., 0] * (2 * width - 1) + offset[..., 1]].permute(2, 0, 1)
        if mask is None:
            return bias
        return torch.cat([bias + mask[index % len(mask)] for index in range(windows)]).unflatten(0, (windows, -1))


class HandRefinement(nn.Module):
    """Eq. 11 of all tokens."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        return formulas.refinement(x, self.num_heads)[:, :num_queries]
