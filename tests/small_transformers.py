"""Small models of Hugging Face transformers, made here. Importing it skips where the library is missing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import locatvit
from locatvit import LocAtConfig
from small_models import stir

transformers: Any = pytest.importorskip(
    "transformers", minversion="5.19", reason="transformers >= 5.19 is not installed"
)

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 24,
    "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Host:
    """A small model of the library.

    Attributes:
        name: its class.
        config: the class of its configuration.
        settings: of the configuration, beside the sizes and 5 classes.
        num_prefix_tokens: as papers count them, not as our code does.
        prr: whether there is a head or a pooler.
        reads_prefix: whether the head reads prefix tokens alone.
        call: what a forward pass needs for images of another size.
    """

    name: str
    config: str
    num_prefix_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    prr: bool = True
    reads_prefix: bool = False
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def is_tower(self) -> bool:
        return self.config in ("CLIPConfig", "SiglipConfig")

    def settings_of_config(self) -> Any:
        config_class = getattr(transformers, self.config)
        if self.is_tower:
            text = {name: value for name, value in SIZES.items() if name not in ("image_size", "patch_size")}
            return config_class(
                text_config={**text, "vocab_size": 11, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
                vision_config={**SIZES, **self.settings}, num_labels=5,
            )  # fmt: skip
        return config_class(**SIZES, num_labels=5, **self.settings)

    def plain(self) -> Any:
        return stir(getattr(transformers, self.name)(self.settings_of_config()))

    def config_for(self, config: LocAtConfig) -> LocAtConfig:
        return config if self.prr else replace(config, prr=False)

    def build(self, config: LocAtConfig | None = None) -> Any:
        return stir(locatvit.add_locat(self.plain(), self.config_for(config or LocAtConfig())))

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits, or the last tokens where there are none."""
        other = self.call if images.shape[-2:] != (24, 24) else {}
        noise = {"noise": order(images)} if "MAE" in self.name else {}
        output = model(images, **other, **noise)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state


def order(images: Tensor) -> Tensor:
    """What leaves MAE's patches in their places."""
    num_patches = images.shape[-2] * images.shape[-1] // 64
    return torch.arange(num_patches, dtype=torch.float32).expand(len(images), -1)


_ANY = {"interpolate_pos_encoding": True}
HOSTS = [
    Host("ViTForImageClassification", "ViTConfig", 1, reads_prefix=True, call=_ANY),
    Host("DeiTForImageClassification", "DeiTConfig", 2, reads_prefix=True, call=_ANY),
    Host("DeiTForImageClassificationWithTeacher", "DeiTConfig", 2, reads_prefix=True, call=_ANY),
    Host("Dinov2ForImageClassification", "Dinov2Config", 1),
    Host("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", 4, {"num_register_tokens": 3}),
    Host("DINOv3ViTModel", "DINOv3ViTConfig", 3, {"num_register_tokens": 2, "pos_embed_rescale": None}, prr=False),
    Host("CLIPForImageClassification", "CLIPConfig", 1, call=_ANY),
    Host("SiglipForImageClassification", "SiglipConfig", 0, {"vision_use_head": False}, call=_ANY),
    Host("IJepaForImageClassification", "IJepaConfig", 0, call=_ANY),
    Host("ViTMAEModel", "ViTMAEConfig", 1, {"mask_ratio": 0.0}, prr=False, call=_ANY),
    Host("BeitForImageClassification", "BeitConfig", 1, {"use_relative_position_bias": True, "drop_path_rate": 0.0}),
]
hosts = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
BY_NAME = {host.name: host for host in HOSTS}
VIT, DINOV3 = HOSTS[0], BY_NAME["DINOv3ViTModel"]


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or (24, 24)))
