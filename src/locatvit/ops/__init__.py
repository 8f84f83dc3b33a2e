"""Functions on tensors."""

from locatvit.ops.attention import BACKENDS, gaug_attention
from locatvit.ops.distance import gaussian_factors

__all__ = ["BACKENDS", "gaug_attention", "gaussian_factors"]
