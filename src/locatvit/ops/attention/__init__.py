"""Attention with a separable locality bias; see README.md in this folder."""

from locatvit.ops.attention.backend import (
    BACKENDS,
    Backend,
    Request,
    choose_backend,
    gaug_attention,
    gaussian_attention,
)

__all__ = ["BACKENDS", "Backend", "Request", "choose_backend", "gaug_attention", "gaussian_attention"]
