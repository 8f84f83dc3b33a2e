"""Protocol ``linear``: batch norm and a 1x1 convolution, in the form of DINOv2 and DINOv3. No torch here.

Source: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, Section 7.4, and the
published configuration of its linear ADE20K evaluation. DINOv3's (Simeoni et al. 2025) is the same but for what is
marked with *: where the two differ, this is DINOv2's.

- Features: the output of the last block after the backbone's final norm.
- Head: batch norm of the patch tokens, then a 1x1 convolution with bias. The norm's gain and offset can be folded into
  the convolution; they change how it learns, not what it can say. No dropout (* DINOv3: 0.1).
- Loss: cross entropy over the labelled pixels, of logits resized bilinearly to the label's size.
- Optimiser: AdamW, betas 0.9 and 0.999, weight decay 1e-4 (* 1e-3) on every weight, no clipping; 40,000 updates of
  16 images.
- Learning rate: peak 1e-3, falling linearly to 0 (* a cosine); over the first 1,500 updates, 3.75 %, it is multiplied
  by a ramp from 1e-6 to 1.
- Training images: as in ``locat`` (* no photometric distortion, no bound on the share of a class), but mean and
  standard deviation are those that the backbone was trained with, as they are for DINOv2's own models.
- Test: short side 512, aspect kept; windows of 512 x 512, 341 apart, the last ones moved inwards; logits averaged where
  windows overlap; mIoU at the label's own size, of the last weights. No flip, one scale.
- Precision: float32.

Four layers joined, several scales and flips, which both papers report beside it, are other protocols.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PRESET: Mapping[str, Any] = MappingProxyType(
    {
        "num_updates": 40_000,
        "batch_size": 16,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "pct_start": 1_500 / 40_000,
        "div_factor": 1e6,
        "dropout": 0.0,
        "norm": True,
        "window_size": 512,
        "window_stride": 341,
        "evaluate_every": 10_000,
    }
)
"""Fields of ``SegmentationConfig``; those of the images are ``data.config.SegmentationAugment``'s own defaults."""
