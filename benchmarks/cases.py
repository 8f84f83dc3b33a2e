"""What is measured, as data: models, sizes and the targets that hold for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Attributes:
        model: a name of timm's; LocAt is added to a second one of it.
        image_size, batch_size: pixels a side, and images.
        train: forward and backward in training mode; otherwise forward without gradients in evaluation mode.
        time_target: the most that LocAt's time may be, over the plain model's; None: no target.
        memory_target: the same for the peak memory above that of the started process.
    """

    model: str
    image_size: int
    batch_size: int
    train: bool
    time_target: float | None
    memory_target: float | None = None

    @property
    def name(self) -> str:
        size = self.model.removeprefix("vit_").removesuffix("_patch16_224")
        return f"{size}-{self.image_size}-{'train' if self.train else 'forward'}"

    @property
    def model_kwargs(self) -> dict[str, bool]:
        """Other sizes than the trained one come in by ``dynamic_img_size``, as a user would do it."""
        return {} if self.image_size == 224 else {"dynamic_img_size": True}


TINY, BASE = "vit_tiny_patch16_224", "vit_base_patch16_224"

CASES = (
    Case(TINY, 224, 8, train=False, time_target=1.10),
    Case(BASE, 224, 4, train=False, time_target=1.05),
    Case(TINY, 512, 2, train=False, time_target=1.15),
    Case(TINY, 1024, 1, train=False, time_target=1.25, memory_target=1.15),
    Case(TINY, 224, 8, train=True, time_target=1.07),
    Case(BASE, 224, 4, train=True, time_target=1.03),
    Case(TINY, 512, 2, train=True, time_target=1.15),
)
