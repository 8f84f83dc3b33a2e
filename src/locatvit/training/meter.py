"""Losses of the updates: their mean, and the stop when one is not a number."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from locatvit.errors import LocAtError

_LOOK_EVERY = 20


class LossMeter:
    """Collects losses without waiting for the device more often than needed.

    A CPU's loss is looked at in each update, before it can touch the weights. A GPU would have to be waited
    for, so its losses are looked at every 20 updates, and before each metrics row and each checkpoint: none
    is written after a loss that is not finite.

    Args:
        device: where the losses are computed.
        total: sum of the losses since the last row, from the checkpoint.
        count: their number.

    Attributes:
        total, count: as above.
        last: the last loss looked at.
    """

    def __init__(self, device: torch.device, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count, self.last = total, count, math.nan
        self._look_every = 1 if device.type == "cpu" else _LOOK_EVERY
        self._unseen: list[tuple[int, int, float, Tensor]] = []
        self._images, self._began = 0, time.monotonic()

    def add(self, update: int, epoch: int, lr: float, loss: Tensor, images: int, standing: str) -> None:
        """Note one update's loss; see ``look``."""
        self._unseen.append((update, epoch, lr, loss.detach()))
        self._images += images
        if len(self._unseen) >= self._look_every:
            self.look(standing)

    def look(self, standing: str) -> None:
        """Bring the losses noted to the host and add them up.

        Args:
            standing: where the last good checkpoint is, for the message.

        Raises:
            LocAtError: one of them is not finite.
        """
        if not self._unseen:
            return
        values = torch.stack([loss.float() for *_, loss in self._unseen]).tolist()
        for (update, epoch, lr, _), value in zip(self._unseen, values, strict=True):
            if not math.isfinite(value):
                raise LocAtError(
                    f"the loss is {value} at update {update} (epoch {epoch}, learning rate {lr:.3g}); "
                    f"{standing}. Lower the learning rate, clip the gradients, or check the images and labels"
                )
            self.total, self.count, self.last = self.total + value, self.count + 1, value
        self._unseen.clear()

    def images_per_second(self) -> float:
        """Of this process, since the last ``restart``."""
        return self._images / max(time.monotonic() - self._began, 1e-9)

    def restart(self) -> None:
        """Begin a new mean and a new clock: a row was written."""
        self.total, self.count = 0.0, 0
        self._images, self._began = 0, time.monotonic()
