"""A model with LocAt whose attentions and PRR are written out from the formulas; the rest of it is the host's."""

from __future__ import annotations

import copy
import math

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

import formulas
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


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that they have in the model with LocAt."""
    return {name.replace(".ours.", "."): value for name, value in model.named_parameters()}


class HandAttention(nn.Module):
    """Eq. 4 with every variant, of any host."""

    def __init__(self, ours: LocalityAttention, config: LocAtConfig, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.ours, self.config, self.grid = ours, config, grid

    def forward(self, x: Tensor, mask: Tensor | None = None, rope: Tensor | None = None, **_: object) -> Tensor:
        host, prefix = self.ours, self.ours.num_prefix_tokens
        qkv = host.qkv(x)
        q, k, v = (part.unflatten(-1, (host.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if hasattr(host, "q_norm"):
            q, k = host.q_norm(q), host.k_norm(k)
        bias = self.bias(q[:, :, prefix:], k[:, :, prefix:], x[:, prefix:])
        bias = formulas.padded(bias, prefix)
        if hasattr(host, "relative_position_bias_table"):
            bias = bias + self.in_window(len(x), mask)
        if rope is not None:
            q, k = (torch.cat([t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope)], 2) for t in (q, k))
        out = formulas.attention(q, k, v, bias).transpose(1, 2).flatten(2)
        return host.proj(out)

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
