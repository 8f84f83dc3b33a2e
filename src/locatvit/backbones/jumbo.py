"""Jumbo: a ViT whose [CLS] is J tokens wide and has an MLP of its own, shared by all blocks; of timm's parts.

timm has no such model. Names, initial values and epsilons are the authors' (details of their code, sections 2, 3).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention, DropPath, LayerNorm, LayerScale, Mlp, get_act_layer, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer, get_init_weights_vit
from torch import Tensor, nn

from locatvit.backbones import timm_vit
from locatvit.backbones.family import Family
from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.layers import LocalityAttention

NUM_JUMBO_TOKENS = 6
"""J of all models of the paper."""

_WIDE_EPS = 1e-5  # of all norms but those of timm's block, which have 1e-6
# What Jumbo is in timm's words; other values of these would make another model.
_FIXED: dict[str, Any] = {
    "class_token": True, "no_embed_class": True, "reg_tokens": 0, "final_norm": True, "fc_norm": False,
}  # fmt: skip


class JumboBlock(Block):
    """timm's block, but the J prefix tokens, joined to one vector, pass an MLP of their own:

        x = x + ls1(attn(norm1(x)))
        patches = patches + ls2(mlp(norm2(patches)))
        joined  = joined  + ls3(jumbo_mlp(norm3(joined)))

    Args:
        dim: D.
        num_heads: H.
        jumbo_mlp: J*D to J*D; the same module in every block.
        num_jumbo_tokens: J.
        init_values: of the layer scales, None for none.
        drop_path: stochastic depth, drawn for each of the three.
        device: of the weights.
        dtype: of the weights.
        kwargs: of timm's ``Block``.
    """  # fmt: skip

    def __init__(
        self, dim: int, num_heads: int, *, jumbo_mlp: nn.Module, num_jumbo_tokens: int,
        init_values: float | None = None, drop_path: float = 0.0, device: Any = None, dtype: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, init_values=init_values, drop_path=drop_path, **factory, **kwargs)
        width = num_jumbo_tokens * dim
        self.num_jumbo_tokens = num_jumbo_tokens
        self.norm3 = LayerNorm(width, eps=_WIDE_EPS, **factory)
        self.ls3 = LayerScale(width, init_values=init_values, **factory) if init_values else nn.Identity()
        self.drop_path3 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.jumbo_mlp = jumbo_mlp

    def forward(
        self, x: Float[Tensor, "B L D"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """The J joined tokens first, then the patches; masks as in timm's ``Block``."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        joined, patches = split(x, self.num_jumbo_tokens)
        patches = patches + self.drop_path2(self.ls2(self.mlp(self.norm2(patches))))
        joined = joined + self.drop_path3(self.ls3(self.jumbo_mlp(self.norm3(joined))))
        return join(joined, patches)


class JumboNorm(LayerNorm):
    """The final norm: of the J joined tokens alone. It takes and gives all tokens, as timm's does.

    Args:
        dim: D.
        num_jumbo_tokens: J.
        kwargs: device and dtype.
    """

    def __init__(self, dim: int, num_jumbo_tokens: int, **kwargs: Any) -> None:
        super().__init__(num_jumbo_tokens * dim, eps=_WIDE_EPS, **kwargs)
        self.num_jumbo_tokens = num_jumbo_tokens

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The patches pass as they are."""
        joined, patches = split(x, self.num_jumbo_tokens)
        return join(super().forward(joined), patches)


class Jumbo(VisionTransformer):
    """A ViT with J tokens for [CLS], which the head reads joined to one vector of width J*D.

    Args:
        embed_dim: D.
        num_jumbo_tokens: J.
        init_values: of the layer scales.
        weight_init: see timm's ``VisionTransformer``.
        kwargs: its others, but for those that make a Jumbo one. ``global_pool`` is ``"token"``, or ``""`` for all
            tokens.

    Raises:
        LocAtError: a keyword that a Jumbo has no use for.
    """

    def __init__(
        self, *, embed_dim: int = 768, num_jumbo_tokens: int = NUM_JUMBO_TOKENS, init_values: float | None = 1e-4,
        weight_init: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        _check_keywords(num_jumbo_tokens, kwargs)
        factory = {name: kwargs.get(name) for name in ("device", "dtype")}
        width = num_jumbo_tokens * embed_dim
        jumbo_mlp = Mlp(
            width,
            int(width * kwargs.get("mlp_ratio", 4.0)),
            act_layer=get_act_layer(kwargs.get("act_layer")) or nn.GELU,
            bias=kwargs.get("proj_bias", True),
            drop=kwargs.get("proj_drop_rate", 0.0),
            **factory,
        )
        super().__init__(
            # to timm, the other J - 1 tokens are registers: it then counts all J wherever it counts
            **{**kwargs, **_FIXED, "reg_tokens": num_jumbo_tokens - 1},
            embed_dim=embed_dim,
            init_values=init_values,
            weight_init="skip",
            block_fn=partial(JumboBlock, jumbo_mlp=jumbo_mlp, num_jumbo_tokens=num_jumbo_tokens),
        )
        self.cls_token = nn.Parameter(torch.empty(1, num_jumbo_tokens, embed_dim, **factory))
        self.reg_token, self.num_reg_tokens = None, 0
        self.head_hidden_size = width
        self.norm = JumboNorm(embed_dim, num_jumbo_tokens, **factory)
        self._make_head(self.num_classes, **factory)
        self.norm_patches: nn.Module = nn.Identity()  # LocAt puts a LayerNorm here
        self.jumbo_mlp = jumbo_mlp
        if weight_init != "skip":
            self.weight_init_mode = weight_init
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's for a ViT; the head starts at even odds for all classes."""
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        initialise = get_init_weights_vit(mode or self.weight_init_mode, needs_reset=needs_reset)
        for name, module in self.named_modules():  # each once, and the shared MLP is most of the weights
            if module is not self:
                initialise(module, name)
        _even_odds(self.head)
        if self.fix_init:
            self.fix_init_weight()

    def pool(self, x: Float[Tensor, "B L D"], pool_type: str | None = None) -> Tensor:
        """What the head reads: the J tokens joined, [B, J*D]."""
        if self.attn_pool is None and (self.global_pool if pool_type is None else pool_type) == "token":
            return split(x, self.num_prefix_tokens)[0]
        return super().pool(x, pool_type)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; see timm's ``VisionTransformer``.

        Raises:
            LocAtError: ``global_pool`` is none that a Jumbo has.
        """
        choices = ("token", "") if self.attn_pool is None else ("token", "", "prr")
        _check_pool(self.global_pool if global_pool is None else global_pool, choices, num_classes)
        super().reset_classifier(num_classes, global_pool)
        self._make_head(num_classes, device=self.cls_token.device, dtype=self.cls_token.dtype)
        _even_odds(self.head)

    def _make_head(self, num_classes: int, **factory: Any) -> None:
        self.head = nn.Linear(self.head_hidden_size, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)


def split(x: Float[Tensor, "B L D"], num_jumbo_tokens: int) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B N D"]]:
    """The J first tokens joined to one vector of width W = J*D, and the patches."""
    return x[:, :num_jumbo_tokens].flatten(1), x[:, num_jumbo_tokens:]


def join(joined: Float[Tensor, "B W"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B L D"]:
    """The inverse of ``split``."""
    return torch.cat((joined.unflatten(1, (-1, patches.shape[2])), patches), dim=1)


def _even_odds(head: nn.Module) -> None:
    """Weights 0 and bias -ln(classes): every class has the same probability, and its logit is the log of that."""
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, -math.log(head.out_features))


def _check_keywords(num_jumbo_tokens: int, kwargs: dict[str, Any]) -> None:
    if num_jumbo_tokens < 1:
        raise LocAtError(f"num_jumbo_tokens is {num_jumbo_tokens}; it must be a whole number >= 1 (the paper's is 6)")
    for name, value in _FIXED.items():
        if kwargs.get(name, value) != value:
            raise LocAtError(f"{name} is {kwargs[name]!r}; a Jumbo model has {name}={value!r}: leave it out")
    _check_pool(kwargs.get("global_pool", "token"), ("token", ""), kwargs.get("num_classes", 1000))


def _check_pool(global_pool: str, choices: tuple[str, ...], num_classes: int) -> None:
    if global_pool == "" and num_classes > 0:
        raise LocAtError(
            f"global_pool is '' and num_classes is {num_classes}; without pooling there is no wide [CLS] for the head "
            "to read: set num_classes to 0, or global_pool to 'token'"
        )
    if global_pool not in choices:
        raise LocAtError(
            f"global_pool is {global_pool!r}; the head of a Jumbo model reads its wide [CLS], so it must be one of "
            + ", ".join(map(repr, choices))
        )


class RefinedJumboPool(timm_vit.RefinedPool):
    """PRR with the J tokens as its queries, which are then joined."""

    def forward(self, x: Float[Tensor, "B L D"]) -> Tensor:
        """The joined refined tokens, [B, J*D]; all tokens where the host does not pool."""
        if self.pool_type == "token":
            return self.refinement(x, num_queries=self.num_prefix_tokens).flatten(1)
        return super().forward(x)


class NormPatches:
    """Forward hook on the final norm: norms the patches, too.

    A hook, because the authors' name for its weights is one of the model's and not of the final norm's.

    Args:
        norm: of the patches; the model's ``norm_patches``.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def __call__(self, final_norm: JumboNorm, args: Any, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        joined, patches = split(x, final_norm.num_jumbo_tokens)
        return join(joined, self.norm(patches))


def matches(model: nn.Module) -> bool:
    return isinstance(model, Jumbo)


def add(model: Any, config: LocAtConfig) -> None:
    """See ``add_locat``."""
    timm_vit.check(model, config, Attention)
    if config.pooling == "avg":
        raise LocAtError(
            "pooling is 'avg', but the head of a Jumbo model reads its wide [CLS], which no average is as wide as: "
            "leave pooling at 'host'"
        )
    timm_vit.prepare(model, config)
    timm_vit.add_gaug(model, config, LocalityAttention)
    if config.prr:
        _add_refinement(model, config)


def _add_refinement(model: Any, config: LocAtConfig) -> None:
    """PRR sees the patches normed, as the paper's other models have them; dense features get this norm with theirs."""
    like = model.norm.weight
    model.norm_patches = nn.LayerNorm(model.embed_dim, eps=_WIDE_EPS, device=like.device, dtype=like.dtype)
    model.norm.register_forward_hook(NormPatches(model.norm_patches))
    refinement = timm_vit.make_refinement(model, config)
    model.attn_pool = RefinedJumboPool(refinement, model.global_pool, model.num_prefix_tokens, include_prefix=False)
    model.pool_include_prefix = True  # timm then hands all tokens to attn_pool
    model.global_pool = "prr"


FAMILY = Family("Jumbo", "our Jumbo", matches, add)

_PRETRAINED = {
    "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9,
    "interpolation": "bicubic", "fixed_input_size": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
}  # fmt: skip
default_cfgs = generate_default_cfgs({f"jumbo_{size}": _PRETRAINED for size in ("tiny", "small", "base")})


def _create(name: str, pretrained: bool, **kwargs: Any) -> Jumbo:
    model: Jumbo = build_model_with_cfg(
        Jumbo,
        name,
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **{"patch_size": 16, "depth": 12, **kwargs},
    )
    return model


@register_model
def jumbo_tiny(pretrained: bool = False, **kwargs: Any) -> Jumbo:
    """Jumbo-Tiny, of the paper."""
    return _create("jumbo_tiny", pretrained, **{"embed_dim": 192, "num_heads": 3, **kwargs})


@register_model
def jumbo_small(pretrained: bool = False, **kwargs: Any) -> Jumbo:
    """Jumbo-Small, not of the paper."""
    return _create("jumbo_small", pretrained, **{"embed_dim": 384, "num_heads": 6, **kwargs})


@register_model
def jumbo_base(pretrained: bool = False, **kwargs: Any) -> Jumbo:
    """Jumbo-Base, of the paper."""
    return _create("jumbo_base", pretrained, **{"embed_dim": 768, "num_heads": 12, **kwargs})
