"""A ViT with LocAt written out from the formulas and the details of the authors' code, for comparison."""

from __future__ import annotations

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

import formulas


def forward(model: torch.nn.Module, images: Tensor, trained: tuple[int, int], *, gaug: bool, prr: bool) -> Tensor:
    """Logits of a timm ViT with GAug's and PRR's formulas, read off its parameters alone."""
    p = dict(model.named_parameters())
    x = F.conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=model.patch_embed.patch_size)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    prefix_tokens = [p[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in p]
    prefix = sum(token.shape[1] for token in prefix_tokens)
    x = torch.cat([*prefix_tokens, x], dim=1)
    if "pos_embed" in p:
        table = p["pos_embed"]
        if grid != trained:
            table = resample_abs_pos_embed(table, new_size=grid, old_size=trained, num_prefix_tokens=prefix)
        x = x + table
    heads = model.blocks[0].attn.num_heads
    for i in range(len(model.blocks)):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        x = x + _attention(b, _norm(x, b["norm1.weight"], b["norm1.bias"]), heads, prefix, grid, trained, gaug)
        y = _norm(x, b["norm2.weight"], b["norm2.bias"])
        y = F.gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = _norm(x, p["norm.weight"], p["norm.bias"])
    if prr:
        x = formulas.refinement(x, heads)
    return x[:, 0] @ p["head.weight"].T + p["head.bias"]


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6) * weight + bias


def _attention(
    b: dict[str, Tensor],
    x: Tensor,
    heads: int,
    prefix: int,
    grid: tuple[int, int],
    trained: tuple[int, int],
    gaug: bool,
) -> Tensor:
    qkv = x @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    bias = q.new_zeros(())
    if gaug:
        top, floor = max(trained) ** 2, 0.1
        while 0.5 * (max(trained) - 1) ** 2 / floor**2 > 32500:
            floor *= 2
        q_sp = q[:, :, prefix:]
        variance = formulas.variance(q_sp @ b["attn.gaug.log_var.weight"].T + b["attn.gaug.log_var.bias"], top)
        if grid != trained:
            variance = variance * min(grid) / min(trained)
        alpha = F.softplus(q_sp @ b["attn.gaug.log_alpha.weight"].T + b["attn.gaug.log_alpha.bias"])[..., 0]
        bias = formulas.supplement(variance + floor, alpha, *grid, prefix, cap=(max(trained) - 1) ** 2)
    out = formulas.attention(q, k, v, bias).transpose(1, 2).flatten(2)
    return out @ b["attn.proj.weight"].T + b["attn.proj.bias"]
