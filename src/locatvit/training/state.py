"""All that changes while a run trains, as one thing to save and restore."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from locatvit.errors import LocAtError
from locatvit.training.checkpoint import one_line


@dataclass
class Progress:
    """How far a run has come: plain data that travels in each checkpoint.

    Attributes:
        update: updates done.
        loss_count: updates since the last metrics row; the sum of their losses is each process's own.
        seconds: wall time so far, interruptions left out.
        metrics: what the last evaluation gave.
        best: ``{"metric", "value", "update"}`` of the best evaluation, None before the first.
    """

    update: int = 0
    loss_count: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None


@dataclass
class TrainingState:
    """All that changes while a run trains: what is saved is what is restored.

    Attributes:
        model: without any wrapper, so that its keys are the model's own.
        optimizer: of the model's weights.
        scheduler: of the optimiser.
        scaler: fp16's gradient scaler, or None.
        ema: timm's ``ModelEmaV3``, or None.
        progress: see ``Progress``.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: Any | None
    ema: Any | None
    progress: Progress

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain data."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Put the state back, in place.

        Raises:
            LocAtError: ``state`` is of another model or optimiser; ``path`` is named.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LocAtError(
                f"{path} is of another model than this run's ({one_line(error)}); give the checkpoint's own "
                "model, or another run folder"
            ) from error
