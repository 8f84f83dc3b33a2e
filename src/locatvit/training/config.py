"""The settings of classification training, as data. No torch: the command line reads these for its help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from locatvit.errors import LocAtError

Precision = Literal["no", "bf16", "fp16"]
"""Arithmetic: ``"no"`` is float32; the others are autocast, fp16 with a gradient scaler (GPU only)."""

Normalisation = Literal["teacher", "student"]
"""Whose mean and standard deviation the images of a teacher have."""

FLOOR_LR = 1e-7
"""Where the triangular schedule starts and ends."""


@dataclass(frozen=True)
class ClassificationConfig:
    """How a classifier is trained. The defaults are the paper's for ImageNet-1K, except ``precision``.

    Small data sets (mini-ImageNet, CIFAR-100) take ``epochs=600, warmup_epochs=120`` in the paper.

    Attributes:
        epochs: passes over the training images, warm-up included.
        warmup_epochs: epochs in which the learning rate climbs; may be a fraction.
        batch_size: images an update, over all devices together.
        lr: peak learning rate, as given (the authors take 1e-3 for 1024 images an update).
        weight_decay: of AdamW; not on 1-d weights, nor on what the model names in ``no_weight_decay()``.
        betas: of AdamW.
        mixup: alpha of Mixup's beta distribution, 0 for none.
        cutmix: alpha of CutMix's beta distribution, 0 for none.
        mixup_probability: share of the batches that are mixed at all.
        mixup_switch: share of the mixed batches that get CutMix, where both are on.
        label_smoothing: share of a target that is spread over all classes.
        clip_grad: cap on the norm of all gradients together, None for no cap.
        ema_decay: decay of a moving average of the weights, which is then what is measured; None for none.
        precision: of the arithmetic. The paper's is ``"fp16"``; ``"no"`` runs everywhere.
        seed: of weights, Mixup and stochastic depth.
        num_workers: processes that load data.
        evaluate_every_epochs: epochs between two evaluations; the last update is always followed by one.
        checkpoint_every_updates: updates between two checkpoints, None for one each epoch.

    Raises:
        LocAtError: a value outside its range.
    """

    epochs: int = 300
    warmup_epochs: float = 20.0
    batch_size: int = 1024
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_probability: float = 1.0
    mixup_switch: float = 0.5
    label_smoothing: float = 0.1
    clip_grad: float | None = 5.0
    ema_decay: float | None = None
    precision: Precision = "no"
    seed: int = 42
    num_workers: int = 8
    evaluate_every_epochs: int = 1
    checkpoint_every_updates: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # a YAML file gives a list
        for name in ("epochs", "batch_size", "evaluate_every_epochs"):
            check_field(name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
        self._check_optimisation()
        self._check_mixing()
        every = self.checkpoint_every_updates
        check_field("checkpoint_every_updates", every, every is None or every >= 1, "None or a whole number >= 1")
        check_field("seed", self.seed, 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647")
        check_field("num_workers", self.num_workers, self.num_workers >= 0, "a whole number >= 0")
        check_field("precision", self.precision, self.precision in get_args(Precision), f"one of {_either(Precision)}")

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix ever acts."""
        return self.mixup_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def _check_optimisation(self) -> None:
        check_field("lr", self.lr, FLOOR_LR <= self.lr < math.inf, f"at least {FLOOR_LR:g}, where the schedule starts")
        check_field(
            "warmup_epochs", self.warmup_epochs, 0 <= self.warmup_epochs <= self.epochs,
            f"from 0 to epochs, which is {self.epochs}: the warm-up is part of the run",
        )  # fmt: skip
        decay, clip, ema = self.weight_decay, self.clip_grad, self.ema_decay
        check_field("weight_decay", decay, 0 <= decay < math.inf, "a number >= 0")
        check_field(
            "betas",
            self.betas,
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "two numbers in [0, 1)",
        )
        check_field("clip_grad", clip, clip is None or 0 < clip < math.inf, "a number > 0, or None for no clipping")
        check_field("ema_decay", ema, ema is None or 0 < ema < 1, "between 0 and 1, or None for no moving average")

    def _check_mixing(self) -> None:
        for name in ("mixup", "cutmix"):
            check_field(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a number >= 0; 0 is off")
        for name in ("mixup_probability", "mixup_switch"):
            check_field(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        check_field("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a share in [0, 1)")
        if self.mixes and self.batch_size % 2:
            raise LocAtError(
                f"batch_size is {self.batch_size}; Mixup and CutMix pair the images of a batch, so it must "
                "be even; change it, or set mixup and cutmix to 0"
            )


@dataclass(frozen=True)
class DistillationConfig:
    """A trained classifier, the teacher, whose answers replace the labels; off without ``teacher``.

    The paper trains Jumbo so (details, section 4): Tiny from deit3_base_patch16_224, Base from
    deit3_large_patch16_224, without labels, with temperature 1 and ``normalisation="student"``.

    Attributes:
        teacher: name of the teacher's model, ours or timm's, with the data's classes; null for no distillation.
        kwargs: for its creation, e.g. {"img_size": 32}; {"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5]}}
            says how its images were normalised where its name does not tell.
        checkpoint: the teacher's weights: a file, a folder, or hf-hub:owner/name. Null for the published ones.
        pretrained: load the weights published under its name, where there is no checkpoint.
        temperature: both models' logits are divided by it, and the loss is multiplied by its square.
        label_weight: share of the usual loss with the labels; 0 leaves all to the teacher.
        normalisation: "teacher" gives the teacher the same images by its own mean and std, as it was trained;
            "student" gives it the student's, as the authors do, whose teachers see about half the contrast they know.

    Raises:
        LocAtError: a value outside its range, or a teacher without weights.
    """

    teacher: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    pretrained: bool = True
    temperature: float = 1.0
    label_weight: float = 0.0
    normalisation: Normalisation = "teacher"

    def __post_init__(self) -> None:
        check_field("temperature", self.temperature, 0 < self.temperature < math.inf, "a number > 0")
        check_field("label_weight", self.label_weight, 0 <= self.label_weight < 1, "a share in [0, 1)")
        choices = get_args(Normalisation)
        check_field(
            "normalisation", self.normalisation, self.normalisation in choices, f"one of {_either(Normalisation)}"
        )
        if self.teacher is None and (self.checkpoint is not None or self.kwargs):
            raise LocAtError("teacher is null, but its checkpoint or kwargs are given; name the teacher's model, too")
        if self.teacher is None and (self.temperature, self.label_weight, self.normalisation) != (1.0, 0.0, "teacher"):
            raise LocAtError(
                "teacher is null, but temperature, label_weight or normalisation is given, which only a teacher has a "
                "use for; name the teacher's model, too"
            )
        if "num_classes" in self.kwargs:
            raise LocAtError(
                f"kwargs of the teacher has num_classes={self.kwargs['num_classes']}; its classes must be the data's: "
                "leave it out"
            )
        if self.teacher is not None and self.checkpoint is None and not self.pretrained:
            raise LocAtError(
                f"teacher is {self.teacher!r} with random weights, which teach nothing; give its checkpoint, or "
                "set pretrained to true"
            )


def check_field(name: str, value: object, holds: bool, rule: str) -> None:
    """Raise ``LocAtError`` with name, value and rule unless ``holds``."""
    if not holds:
        raise LocAtError(f"{name} is {value!r}; it must be {rule}")


def _either(choices: object) -> str:
    return ", ".join(get_args(choices))
