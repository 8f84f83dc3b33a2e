"""The op, and the only list of what can run it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locatvit.errors import LocAtError, near_matches
from locatvit.grid import GridSize, check_grid
from locatvit.ops.attention import flex, reference, sdpa, triton
from locatvit.ops.attention.request import Request
from locatvit.ops.distance import Gaussian
from locatvit.ops.prediction import PredictedGaussian

_log = logging.getLogger("locatvit")


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        why_not: gives the reason for which it cannot serve a request, or None.
        run: with the two factors of the bias.
        run_gaussian: with a ``Gaussian`` in their place; None where its factors are made first.
        run_predicted: with a ``PredictedGaussian`` of the very queries; None where it is evaluated first.
    """

    name: str
    why_not: Callable[[Request], str | None]
    run: Callable[..., Tensor]
    run_gaussian: Callable[..., Tensor] | None = None
    run_predicted: Callable[..., Tensor] | None = None


def _always(request: Request) -> None:
    return None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("triton", triton.why_not, triton.run, triton.run_gaussian),
        Backend("sdpa", _always, sdpa.run, sdpa.run_gaussian, sdpa.run_predicted),
        Backend("flex", flex.why_not, flex.run),
        Backend("reference", _always, reference.run),
    )
}
"""In order of preference: ``backend="auto"`` takes the first that can run."""


def gaug_attention(
    q: Float[Tensor, "B H L K"],
    k: Float[Tensor, "B H L K"],
    v: Float[Tensor, "B H L K"],
    row_factor: Float[Tensor, "B H N h"],
    column_factor: Float[Tensor, "B H N w"],
    *,
    num_prefix_tokens: int,
    attn_bias: Float[Tensor, ...] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "B H L K"]:
    """Attention with a separable locality bias (Eqs. 4, 10), without an N x N tensor where the backend can.

        logits[p, t] = q_p · k_t · scale + row_factor[p, row(t)] * column_factor[p, col(t)] + attn_bias[p, t]

    for patches p and t; the rows and columns of prefix tokens get nothing. Gradients reach every tensor.

    Args:
        q, k, v: L = num_prefix_tokens + N tokens, the prefix first, then the patches row by row.
        row_factor, column_factor: any two factors, e.g. alpha times the Gaussian's (Eqs. 8, 9). N = h * w.
        num_prefix_tokens: [CLS], registers and the like.
        attn_bias: a further additive term, broadcastable to [B, H, L, L]; -inf excludes a pair. Of B images in
            windows it may have as many as one image has windows: it is then repeated.
        scale: of the dot products, 1/sqrt(K) by default.
        dropout_p: probability of dropping an attention weight.
        backend: a name of ``BACKENDS``, or ``"auto"``.

    Raises:
        LocAtError: shapes that do not fit; an unknown backend, or one that cannot run, with its reason.
    """
    grid_size = (row_factor.shape[-1], column_factor.shape[-1])
    _check_tokens(q, k, v)
    for name, factor in (("row_factor", row_factor), ("column_factor", column_factor)):
        _check_patches(name, factor, q, num_prefix_tokens, "and one axis of the grid: a factor a patch")
    factors = row_factor, column_factor
    chosen, rest = _prepared(q, k, v, factors, grid_size, num_prefix_tokens, attn_bias, scale, dropout_p, backend)
    return chosen.run(q, k, v, *factors, *rest)


def gaussian_attention(
    q: Float[Tensor, "B H L K"],
    k: Float[Tensor, "B H L K"],
    v: Float[Tensor, "B H L K"],
    gaussian: Gaussian | PredictedGaussian,
    *,
    num_prefix_tokens: int,
    attn_bias: Float[Tensor, ...] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "B H L K"]:
    """``gaug_attention`` with the paper's own bias (Eqs. 8, 10), three numbers a patch in place of two factors.

        logits[p, t] = q_p · k_t · scale + alpha_p exp(-1/2 (D_pt,row / var_p,row + D_pt,col / var_p,col))

    A backend that can evaluates the exponentials inside its kernel, and no factor is ever in memory. Gradients reach
    variance and alpha too, or the weights that predict them.

    Args:
        gaussian: of the patches, or what it is predicted from; the other arguments are those of ``gaug_attention``.

    Raises:
        LocAtError: as ``gaug_attention``.
    """
    _check_tokens(q, k, v)
    if isinstance(gaussian, PredictedGaussian):
        _check_prediction(gaussian, q, num_prefix_tokens)
        made_of = gaussian.weight, gaussian.bias
    else:
        made_of = gaussian.variance, gaussian.alpha
        _check_variance(gaussian.variance, q, num_prefix_tokens)
        _check_patches("alpha", gaussian.alpha[..., None], q, num_prefix_tokens, "without the last: one number a patch")
    chosen, rest = _prepared(
        q, k, v, made_of, gaussian.grid_size, num_prefix_tokens, attn_bias, scale, dropout_p, backend
    )
    if isinstance(gaussian, PredictedGaussian):
        # a rotation, say, lies between the queries that predict and those that attend
        if chosen.run_predicted is not None and gaussian.queries is q:
            return chosen.run_predicted(q, k, v, gaussian, *rest)
        gaussian = gaussian.evaluate()
    if chosen.run_gaussian is not None:
        return chosen.run_gaussian(q, k, v, gaussian, *rest)
    return chosen.run(q, k, v, *gaussian.factors(), *rest)


def choose_backend(request: Request, name: str = "auto") -> Backend:
    """The backend called ``name``, or for ``"auto"`` the first that has no reason not to run."""
    if name == "auto":
        if torch.compiler.is_exporting():  # what is exported runs without this package
            return BACKENDS["sdpa"]
        chosen = next(backend for backend in BACKENDS.values() if backend.why_not(request) is None)
        if not torch.compiler.is_compiling():
            _log_once(chosen.name, request.device_type)
        return chosen
    if name not in BACKENDS:
        raise LocAtError(f"backend {name!r} is unknown; {near_matches(name, [*BACKENDS, 'auto'])}")
    reason = BACKENDS[name].why_not(request)
    if reason is not None:
        raise LocAtError(f"backend {name!r} cannot run here: {reason}; backend='auto' takes one that can")
    return BACKENDS[name]


@functools.cache
def _log_once(name: str, device_type: str) -> None:
    _log.info("attention backend on %s: %s", device_type, name)


def _check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        raise LocAtError(
            f"q, k and v have the shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}; they must be one and "
            "the same [B, H, L, K]"
        )


def _prepared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locality: tuple[Tensor, Tensor],
    grid_size: GridSize,
    num_prefix_tokens: int,
    attn_bias: Tensor | None,
    scale: float | None,
    dropout_p: float,
    backend: str,
) -> tuple[Backend, tuple[int, Tensor | None, float, float]]:
    """The backend, and what it takes after the tensors that make the ``locality`` bias: prefix, bias, scale, dropout.

    Raises:
        LocAtError: something does not fit, or the backend cannot run.
    """
    if not 0 <= dropout_p < 1:
        raise LocAtError(f"dropout_p is {dropout_p}; it must be a probability in [0, 1)")
    check_grid(grid_size, q.shape[-2] - num_prefix_tokens, num_prefix_tokens)
    if attn_bias is not None:
        _check_bias(q, attn_bias)
        attn_bias = attn_bias[(None,) * (4 - attn_bias.ndim)]
    is_training = torch.is_grad_enabled()
    request = Request(
        q.device.type, v.dtype, q.shape[-1], q.shape[-2], num_prefix_tokens, grid_size,
        attn_bias_shape=None if attn_bias is None else tuple(attn_bias.shape),
        attn_bias_needs_grad=is_training and attn_bias is not None and attn_bias.requires_grad,
        dropout_p=dropout_p,
        needs_grad=is_training and any(x is not None and x.requires_grad for x in (q, k, v, *locality, attn_bias)),
    )  # fmt: skip
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return choose_backend(request, backend), (num_prefix_tokens, attn_bias, scale, dropout_p)


def _check_patches(name: str, tensor: Tensor, q: Tensor, num_prefix_tokens: int, rule: str) -> None:
    expected = (*q.shape[:-2], q.shape[-2] - num_prefix_tokens)
    if tensor.shape[:-1] != expected:
        raise LocAtError(
            f"{name} has shape {tuple(tensor.shape)} but q has {tuple(q.shape)} and {num_prefix_tokens} prefix "
            f"tokens; it must be {expected} {rule}, none for prefix tokens"
        )


def _check_variance(variance: Tensor, q: Tensor, num_prefix_tokens: int) -> None:
    expected = (*q.shape[:-2], q.shape[-2] - num_prefix_tokens, 2)
    fits = all(size in (1, whole) for size, whole in zip(variance.shape, expected, strict=False))
    if variance.ndim != 4 or variance.shape[-1] != 2 or not fits:
        raise LocAtError(
            f"variance has shape {tuple(variance.shape)}; it must broadcast to {expected}: of each patch that of rows "
            "and that of columns, none for prefix tokens"
        )


def _check_prediction(gaussian: PredictedGaussian, q: Tensor, num_prefix_tokens: int) -> None:
    if gaussian.queries.shape != q.shape or gaussian.num_prefix_tokens != num_prefix_tokens:
        raise LocAtError(
            f"the Gaussian is predicted from {tuple(gaussian.queries.shape)} queries with "
            f"{gaussian.num_prefix_tokens} prefix tokens but q has {tuple(q.shape)} with {num_prefix_tokens}; they "
            "must be of the same tokens"
        )
    expected = (3, q.shape[-1])
    if gaussian.weight.shape != expected or gaussian.bias.shape != expected[:1]:
        raise LocAtError(
            f"weight and bias have the shapes {tuple(gaussian.weight.shape)} and {tuple(gaussian.bias.shape)}; they "
            f"must be {expected} and (3,): variance of rows, variance of columns, alpha"
        )


def _check_bias(q: Tensor, attn_bias: Tensor) -> None:
    if not attn_bias.is_floating_point():
        raise LocAtError(
            f"attn_bias is {attn_bias.dtype}; it is added, so it must be of floats: 0 where attention is allowed, -inf "
            "where not"
        )
    batch, num_heads, num_tokens, _ = q.shape
    images, *rest = (1,) * (4 - attn_bias.ndim) + tuple(attn_bias.shape)
    fits = all(size in (1, whole) for size, whole in zip(rest, (num_heads, num_tokens, num_tokens), strict=False))
    if attn_bias.ndim > 4 or not fits or images == 0 or batch % images:
        raise LocAtError(
            f"attn_bias has shape {tuple(attn_bias.shape)}; it must broadcast to [B, H, L, L], which is "
            f"{(batch, num_heads, num_tokens, num_tokens)}, or B be a multiple of its first size"
        )
