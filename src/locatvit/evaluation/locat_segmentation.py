"""Protocol ``locat``: the paper's segmentation, frozen here. No torch: the command line reads this.

Source: Hajimiri et al., Locality-Attending Vision Transformer, ICLR 2026, Section 5, and the authors' code where the
text is silent.

- Features: the raw output of the last block, before the final norm and without PRR.
- Head: 1x1 convolution to 512 channels without bias, ``GroupNorm`` of one group, GELU, 1x1 convolution to the classes.
- Loss: cross entropy over the labelled pixels, of logits resized bilinearly to the label's size.
- Optimiser: AdamW, betas 0.9 and 0.999, weight decay 0.01 on every weight, no clipping; 20,000 updates of 32 images.
- Learning rate: 1e-7 to 1e-3 over the first quarter, then to 1e-11, linearly.
- Training images: short side 512 (long side at most 2048), both times 0.5 to 2; crop of 512 x 512 in which no class has
  more than 75 % of the labelled pixels, drawn again up to ten times; flip; photometric distortion; ImageNet's mean and
  standard deviation for every model; padding with 0 and the ignored label.
- PASCAL Context: 520 for both sides, so that it is the long side that decides, and crops of 480.
- Test: the whole image at the training scale, its aspect kept, no flip; mIoU at the label's own size, of the last
  weights.
- Precision: float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PRESET: Mapping[str, Any] = MappingProxyType(
    {
        "num_updates": 20_000,
        "batch_size": 32,
        "lr": 1e-3,
        "weight_decay": 0.01,
        "pct_start": 0.25,
        "div_factor": 1e4,
        "final_div_factor": 1e4,
        "hidden_dim": 512,
        "norm": False,
        "window_size": 0,
        "window_stride": 0,
        "evaluate_every": 4_000,
    }
)
"""Fields of ``SegmentationConfig``; those of the images are ``data.config.SegmentationAugment``'s own defaults."""
