"""The heads of the segmentation protocols: patch tokens to class logits of every patch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.features import Features


class PatchHead(nn.Module):
    """A head that is made of ``layers`` on the map of patches.

    Args:
        embed_dim: width D of the patch tokens.
        layers: from ``[B, D, h, w]`` to ``[B, C, h, w]``.
    """

    def __init__(self, embed_dim: int, layers: nn.Sequential) -> None:
        super().__init__()
        self.embed_dim, self.layers = embed_dim, layers

    def forward(self, features: Features) -> Float[Tensor, "B C h w"]:
        """Class logits of every patch.

        Raises:
            LocAtError: the patch tokens are not ``embed_dim`` wide.
        """
        width = features.patches.shape[-1]
        if width != self.embed_dim:
            raise LocAtError(
                f"the patch tokens are {width} wide but the head reads embed_dim {self.embed_dim}; build the "
                "head for this backbone and this layer"
            )
        logits: Tensor = self.layers(features.patch_map)
        return logits


class SegmentationHead(PatchHead):
    """Protocol ``locat``: 1x1 convolution (no bias), ``GroupNorm`` of one group, GELU, 1x1 convolution to the classes.

    Args:
        embed_dim: width D of the patch tokens.
        num_classes: C.
        hidden_dim: channels of the hidden layer.

    Raises:
        LocAtError: a size below 1.
    """

    def __init__(self, embed_dim: int, num_classes: int, hidden_dim: int = 512) -> None:
        _check_sizes(embed_dim=embed_dim, num_classes=num_classes, hidden_dim=hidden_dim)
        layers = nn.Sequential(
            nn.Conv2d(embed_dim, hidden_dim, kernel_size=1, bias=False),
            nn.GroupNorm(1, hidden_dim),
            nn.GELU(),
            nn.Conv2d(hidden_dim, num_classes, kernel_size=1),
        )
        super().__init__(embed_dim, layers)


class LinearHead(PatchHead):
    """Protocol ``linear``: batch norm, dropout of whole channels, 1x1 convolution to the classes.

    The convolution starts as DINOv2's: normal weights of deviation 0.01, no bias.

    Args:
        embed_dim: width D of the patch tokens.
        num_classes: C.
        dropout: probability, in training.

    Raises:
        LocAtError: a size below 1.
    """

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        _check_sizes(embed_dim=embed_dim, num_classes=num_classes)
        classifier = nn.Conv2d(embed_dim, num_classes, kernel_size=1)
        nn.init.normal_(classifier.weight, std=0.01)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        super().__init__(embed_dim, nn.Sequential(nn.BatchNorm2d(embed_dim), nn.Dropout2d(dropout), classifier))


def build_head(config: SegmentationConfig, embed_dim: int, num_classes: int) -> PatchHead:
    """The untrained head of the configuration's protocol, weights drawn from torch's generator.

    Raises:
        LocAtError: a size below 1.
    """
    value = config.values()
    if config.protocol == "linear":
        return LinearHead(embed_dim, num_classes, value["dropout"])
    return SegmentationHead(embed_dim, num_classes, value["hidden_dim"])


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise LocAtError(f"{name} is {size}; it must be at least 1")
