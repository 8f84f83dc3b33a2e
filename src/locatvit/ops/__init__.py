"""Functions on tensors."""

from locatvit.ops.attention import BACKENDS, gaug_attention, gaussian_attention
from locatvit.ops.distance import Gaussian, gaussian_factors
from locatvit.ops.prediction import PredictedGaussian

__all__ = ["BACKENDS", "Gaussian", "PredictedGaussian", "gaug_attention", "gaussian_attention", "gaussian_factors"]
