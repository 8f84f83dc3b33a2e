"""The teacher of a distillation, from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import nn

from locatvit.backbones.checkpoint import weights_digest
from locatvit.data.config import ClassificationAugment
from locatvit.errors import LocAtError
from locatvit.recipes.config import ModelConfig
from locatvit.recipes.run import ModelPlan
from locatvit.training.config import DistillationConfig
from locatvit.training.distillation import Distillation, MeanStd


class TeacherPlan:
    """A teacher whose name and checkpoint are known to be good, before the data tell the number of classes.

    Args:
        config: with a teacher.

    Raises:
        LocAtError: an unknown name, or a checkpoint that is missing or cannot be read.
    """

    def __init__(self, config: DistillationConfig) -> None:
        assert config.teacher is not None
        self._config = config
        self._has_checkpoint = config.checkpoint is not None
        with _told_of_the_teacher():
            self._plan = ModelPlan(
                ModelConfig(
                    config.teacher,
                    dict(config.kwargs),
                    checkpoint=config.checkpoint,
                    pretrained=config.pretrained and not self._has_checkpoint,
                )
            )

    def build(self, augment: ClassificationAugment, num_classes: int) -> tuple[Distillation, dict[str, Any]]:
        """The objective, and what a run's fingerprint and result say of it: its settings, and the teacher's weights.

        The latter under the key ``"distillation"``; a digest of the weights stands for their file, wherever it lies.

        Args:
            augment: how the student's images are made.
            num_classes: of the data.

        Raises:
            LocAtError: the teacher cannot be created, has other classes, does not take the images, or does not tell
                how its own are normalised.
        """
        config = self._config
        with _told_of_the_teacher():
            teacher = self._plan.build(num_classes if self._has_checkpoint else None)
        images = MeanStd(augment.mean, augment.std)
        wanted = images if config.normalisation == "student" else _mean_std(teacher, config)
        distillation = Distillation(teacher, config, images=images, teacher_images=wanted)
        distillation.check(augment.image_size, num_classes)
        settings = {name: value for name, value in asdict(config).items() if name not in ("checkpoint", "pretrained")}
        return distillation, {"distillation": {**settings, "weights": weights_digest(teacher)}}


def _mean_std(teacher: nn.Module, config: DistillationConfig) -> MeanStd:
    told: dict[str, Any] = getattr(teacher, "pretrained_cfg", None) or {}
    if not all(len(told.get(name) or ()) == 3 for name in ("mean", "std")):
        raise LocAtError(
            f"the teacher {config.teacher!r} does not tell mean and std of its images; set them by its kwargs "
            "(pretrained_cfg_overlay), or set normalisation to 'student'"
        )
    return MeanStd(tuple(told["mean"]), tuple(told["std"]))


@contextmanager
def _told_of_the_teacher() -> Iterator[None]:
    """Messages about a model say which: the student's would read the same."""
    try:
        yield
    except LocAtError as error:
        raise LocAtError(f"the teacher of the distillation: {error}") from error
