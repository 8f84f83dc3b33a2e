"""Distillation: a trained classifier's answers in place of the labels, as the paper trains Jumbo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.training.config import DistillationConfig

_REFUSALS = (AssertionError, RuntimeError, ValueError)  # what models raise on images of another size than theirs


@dataclass(frozen=True)
class MeanStd:
    """How images in [0, 1] were normalised: (image - mean) / std, per channel."""

    mean: Sequence[float]
    std: Sequence[float]


class Distillation:
    """The loss of a student against a teacher (details of the authors' code, section 4).

        loss = T² KL(p_teacher || p_student),  p = softmax(logits / T), the mean over the batch

    That is torch's ``kl_div(log p_student, log p_teacher, reduction="batchmean", log_target=True)``, which takes
    its arguments in the other order than the divergence is written. The teacher sees the very images that the
    student sees, mixed as they are.

    Args:
        teacher: gives logits ``[B, C]``. It is put into evaluation mode and takes no gradients; it is no part of the
            student, nor of its checkpoints.
        config: see there; the teacher's name is for messages.
        images: how the student's images are normalised.
        teacher_images: how the teacher's are; where it is not the same they are normalised anew for it.
    """  # fmt: skip

    def __init__(
        self, teacher: nn.Module, config: DistillationConfig, *, images: MeanStd, teacher_images: MeanStd
    ) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self.config = config
        # (x * std + mean - own mean) / own std, as one product and one sum
        channels = tuple(zip(images.mean, images.std, teacher_images.mean, teacher_images.std, strict=True))
        self._same_images = all((mean, std) == (own_mean, own_std) for mean, std, own_mean, own_std in channels)
        self._scale = torch.tensor([std / own_std for _, std, _, own_std in channels])[:, None, None]
        self._shift = torch.tensor([(mean - own) / own_std for mean, _, own, own_std in channels])[:, None, None]

    def to(self, device: torch.device) -> None:
        """Move the teacher and all that it needs."""
        self._teacher.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    def check(self, image_size: int, num_classes: int) -> None:
        """Show the teacher one image, before a run begins.

        Args:
            image_size: side of the square images of the training, in pixels.
            num_classes: of the data.

        Raises:
            LocAtError: the teacher does not take the images, or knows other classes.
        """
        weight = next(self._teacher.parameters())
        try:
            logits = self.teacher_logits(weight.new_zeros(1, 3, image_size, image_size))
        except _REFUSALS as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise LocAtError(
                f"the teacher {self.config.teacher!r} refuses images of {image_size} x {image_size} pixels ({reason}); "
                "create it for this size (kwargs, e.g. img_size), or train at its own"
            ) from error
        self._check_classes(logits, num_classes)

    def __call__(self, logits: Float[Tensor, "B C"], images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, ""]:
        """The divergence, in nats.

        Args:
            logits: the student's.
            images: what it saw.

        Raises:
            LocAtError: the teacher has other classes.
        """
        wanted = self.teacher_logits(images)
        self._check_classes(wanted, logits.shape[1])
        temperature = self.config.temperature
        divergence = F.kl_div(
            (logits.float() / temperature).log_softmax(dim=1),
            (wanted / temperature).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * temperature**2

    @torch.no_grad()
    def teacher_logits(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C"]:
        """What the teacher says to images that are normalised for the student, in float32."""
        if not self._same_images:
            images = images * self._scale.to(images) + self._shift.to(images)
        logits: Tensor = self._teacher(images)
        return logits.float()

    def _check_classes(self, logits: Tensor, num_classes: int) -> None:
        if logits.shape[1:] != (num_classes,):
            raise LocAtError(
                f"the teacher {self.config.teacher!r} gives {' x '.join(map(str, logits.shape[1:]))} outputs but the "
                f"data has {num_classes} classes; give a teacher that was trained on the data's classes"
            )
