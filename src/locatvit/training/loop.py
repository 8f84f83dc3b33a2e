"""One training loop: for a classifier, for a head on frozen features, for whatever has a loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, gather_object
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from locatvit.errors import LocAtError
from locatvit.results import append_metrics, truncate_metrics
from locatvit.training.batches import EpochBatches, EpochLoader
from locatvit.training.checkpoint import (
    Resume,
    best_path,
    check_fingerprint,
    checkpoint_path,
    clear_run,
    find_checkpoint,
    plain,
    write_best,
    write_checkpoint,
)
from locatvit.training.display import Display
from locatvit.training.meter import LossMeter
from locatvit.training.runtime import preserved_rng, rng_state, set_rng_state
from locatvit.training.state import Progress, TrainingState

LossFn = Callable[[Any, Any], Tensor]
Evaluate = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class FitReport:
    """What a training run came to.

    Attributes:
        updates: done in all, also before an interruption.
        resumed_from: the update that this call went on from; 0 for a run from the start.
        metrics: of the last evaluation; empty without one.
        best: ``{"metric", "value", "update"}`` of the best evaluation; None without ``best_metric``.
        best_weights: the file with the weights of that evaluation (``checkpoint.read_weights``), or None.
        checkpoint: the last checkpoint.
        seconds: wall time of training, interruptions left out.
    """

    updates: int
    resumed_from: int
    metrics: dict[str, float]
    best: dict[str, Any] | None
    best_weights: Path | None
    checkpoint: Path
    seconds: float


def fit(
    *,
    model: nn.Module,
    loss_fn: LossFn,
    loader: EpochLoader,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    num_updates: int,
    run_dir: Path,
    accelerator: Accelerator,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    best_metric: str | None = None,
    higher_is_better: bool = True,
    checkpoint_every: int | None = None,
    resume: Resume = "auto",
    fingerprint: dict[str, Any] | None = None,
    ema: Any | None = None,
    clip_grad: float | None = None,
    check_batch: Callable[[Any], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    description: str = "training",
) -> FitReport:
    """Train ``model`` in place, and leave metrics and checkpoints in ``run_dir``.

    A run that is killed at any moment and started again with ``resume="auto"`` ends, on a CPU, with the same
    weights bit for bit: a checkpoint holds model, optimiser, schedule, moving average, all random states and
    the update, and neither loading nor evaluation moves the random stream of the training. ``metrics.jsonl``
    gets a row at the end of each epoch and at each evaluation; ``train_loss`` is the mean since the last row.

    Args:
        model: whose weights are trained; parts of the loss that are frozen stay with ``loss_fn``.
        loss_fn: ``(model, batch) -> scalar loss``. It must call the model it is given (which may be a
            wrapped one), and runs under autocast where the precision asks for it.
        loader: see ``EpochLoader``; not prepared by Accelerate, that happens here.
        optimizer: over the model's weights.
        scheduler: of the optimiser, stepped once an update.
        num_updates: length of the run.
        run_dir: the run's folder; made where missing.
        accelerator: from ``runtime.make_accelerator``.
        evaluate: called with the weights of the moment, after the last update and every ``evaluate_every``.
        evaluate_every: updates between two evaluations, None for the last only.
        best_metric: name in ``evaluate()``'s answer by which the best weights are kept, None to keep none.
        higher_is_better: whether the best is the highest.
        checkpoint_every: updates between two checkpoints, None for one each epoch; the last has one too.
        resume: see ``checkpoint.Resume``.
        fingerprint: plain data; a checkpoint with another one is not resumed.
        ema: timm's ``ModelEmaV3`` of ``model``, updated after each update; the best weights are then its.
        clip_grad: cap on the norm of all gradients together.
        check_batch: see ``EpochBatches``.
        on_start: called once with the updates done before, after a checkpoint was accepted and before the
            first update: here a run may write to its folder what it would not have a refused run overwrite.
        description: for the progress bar.

    Raises:
        LocAtError: the loss, a weight or a metric is not finite; the disk is full; a checkpoint cannot be
            resumed; the loader is empty. Checkpoints that were written stand.
    """
    if num_updates < 1:
        raise LocAtError(f"num_updates is {num_updates}; it must be a whole number >= 1")
    batches = EpochBatches(loader, accelerator, check_batch)
    evaluate_every = evaluate_every or num_updates
    checkpoint_every = checkpoint_every or len(batches)
    state = TrainingState(model, optimizer, scheduler, accelerator.scaler, ema, Progress())
    run = _Run(state, Path(run_dir), accelerator, best_metric, higher_is_better)
    display = Display(description, num_updates, enabled=accelerator.is_main_process)
    with _prepared(accelerator, model, optimizer) as (trained, stepper), display:
        shape = {"num_updates": num_updates, "updates_per_epoch": len(batches)}
        resumed_from = run.start(resume, {**(fingerprint or {}), **shape})
        if on_start is not None:
            on_start(resumed_from)
        trained.train()
        for update, batch in batches.stream(resumed_from, num_updates):
            epoch = (update - 1) // len(batches) + 1
            with accelerator.autocast():
                loss = loss_fn(trained, batch)
            run.note(update, epoch, loss, batch)
            accelerator.backward(loss)
            if clip_grad is not None:
                accelerator.clip_grad_norm_(trained.parameters(), clip_grad)
            stepper.step()
            scheduler.step()
            stepper.zero_grad()
            if ema is not None:
                ema.update(model, step=update)
            display.update(update, *run.now())

            last = update == num_updates
            evaluates = evaluate is not None and (last or update % evaluate_every == 0)
            if evaluates or last or update % len(batches) == 0:
                display.row(run.row(update, epoch, evaluate if evaluates else None), evaluated=evaluates)
                trained.train()
            if last or update % checkpoint_every == 0:
                run.save(update)
    return run.report(resumed_from)


@contextmanager
def _prepared(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[Any, Any]]:
    """Model and optimiser in Accelerate's wrapping; afterwards the model is as it was, on its device."""
    trained, stepper = accelerator.prepare(model, optimizer)
    try:
        yield trained, stepper
    finally:
        accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
        accelerator.free_memory()


class _Run:
    """The bookkeeping of one ``fit``: losses, metric rows, checkpoints."""

    def __init__(
        self, state: TrainingState, run_dir: Path, accelerator: Accelerator, best_metric: str | None,
        higher_is_better: bool,
    ) -> None:  # fmt: skip
        self._state, self._run_dir, self._accelerator = state, run_dir, accelerator
        self._best_metric, self._higher_is_better = best_metric, higher_is_better
        self._fingerprint: dict[str, Any] = {}
        self._checkpoint: Path | None = None
        self._lr = math.nan
        self._meter = LossMeter(accelerator.device)
        self._clock = time.monotonic()

    @property
    def _standing(self) -> str:
        if self._checkpoint is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint stands: {self._checkpoint}"

    def start(self, resume: Resume, fingerprint: dict[str, Any]) -> int:
        """Restore the checkpoint that ``resume`` means, if any, and clear what came later. Updates done."""
        accelerator, device = self._accelerator, self._accelerator.device
        self._fingerprint = plain({**fingerprint, "num_processes": accelerator.num_processes})
        loss_sum = 0.0
        found = find_checkpoint(self._run_dir, resume)
        if found is not None:
            self._checkpoint, saved = found
            check_fingerprint(saved["fingerprint"], self._fingerprint, self._checkpoint)
            self._state.load_state_dict(saved, self._checkpoint)
            own = saved["processes"][accelerator.process_index]
            set_rng_state(own["rng"], device)
            loss_sum = own["loss_sum"]
        progress = self._state.progress
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            clear_run(self._run_dir, everything=resume == "never")
            truncate_metrics(self._run_dir, progress.update)
        accelerator.wait_for_everyone()
        self._meter = LossMeter(device, loss_sum, progress.loss_count)
        self._clock = time.monotonic()
        return progress.update

    def note(self, update: int, epoch: int, loss: Tensor, batch: Any) -> None:
        """Note an update's loss and learning rate; stops the run where the loss is seen not to be finite."""
        self._lr = float(self._state.optimizer.param_groups[0]["lr"])
        self._meter.add(update, epoch, self._lr, loss, find_batch_size(batch) or 0, self._standing)

    def now(self) -> tuple[float, float, float]:
        """The last loss seen, the learning rate, images per second of all processes."""
        rate = self._meter.images_per_second() * self._accelerator.num_processes
        return self._meter.last, self._lr, rate

    def row(self, update: int, epoch: int, evaluate: Evaluate | None) -> dict[str, Any]:
        """Evaluate where asked; write the metrics row of this moment and return it."""
        self._check_weights(update)
        row = {"update": update, "epoch": epoch, "train_loss": self._mean_loss(), "lr": self._lr}
        row["images_per_second"] = round(self.now()[2], 2)
        if evaluate is not None:
            self._evaluate(update, evaluate)
            row |= self._state.progress.metrics
        row["seconds"] = round(self._spent(), 3)
        if self._accelerator.is_main_process:
            try:
                append_metrics(self._run_dir, row)
            except OSError as error:
                raise LocAtError(
                    f"cannot write metrics to {self._run_dir}: {error.strerror}; {self._standing}. Free some "
                    "space, then start again"
                ) from error
        self._meter.restart()
        return row

    def save(self, update: int) -> None:
        """Write a checkpoint, unless a loss or a weight is not finite: then the last one stands."""
        self._check_weights(update)
        progress = self._state.progress
        progress.update = update
        progress.loss_count = self._meter.count
        self._spent()
        own = [{"rng": rng_state(self._accelerator.device), "loss_sum": self._meter.total}]
        processes = gather_object(own) if self._accelerator.num_processes > 1 else own
        content = {**self._state.state_dict(), "processes": processes, "fingerprint": self._fingerprint}
        self._write(lambda: write_checkpoint(self._run_dir, content))
        self._checkpoint = checkpoint_path(self._run_dir, update)

    def report(self, resumed_from: int) -> FitReport:
        """The end of the run in figures."""
        progress, path = self._state.progress, best_path(self._run_dir)
        return FitReport(
            updates=progress.update,
            resumed_from=resumed_from,
            metrics=progress.metrics,
            best=progress.best,
            best_weights=path if progress.best is not None and path.exists() else None,
            checkpoint=checkpoint_path(self._run_dir, progress.update),
            seconds=progress.seconds,
        )

    def _check_weights(self, update: int) -> None:
        self._meter.look(self._standing)
        norm = torch.nn.utils.get_total_norm(list(self._state.model.parameters()))
        if not norm.isfinite():
            raise LocAtError(
                f"the weights are not finite after update {update} (learning rate {self._lr:.3g}); "
                f"{self._standing}. Lower the learning rate or clip the gradients"
            )

    def _mean_loss(self) -> float:
        mean = self._meter.total / max(self._meter.count, 1)
        if self._accelerator.num_processes == 1:
            return mean
        return float(self._accelerator.gather(torch.tensor([mean], device=self._accelerator.device)).mean())

    def _evaluate(self, update: int, evaluate: Evaluate) -> None:
        progress, name = self._state.progress, self._best_metric
        with preserved_rng(self._accelerator.device):
            progress.metrics = {key: float(value) for key, value in evaluate().items()}
        for key, value in progress.metrics.items():
            if not math.isfinite(value):
                raise LocAtError(f"{key} is {value} in the evaluation after update {update}; {self._standing}")
        if name is None:
            return
        if name not in progress.metrics:
            raise LocAtError(
                f"best_metric is {name!r}; the evaluation gives {', '.join(progress.metrics) or 'nothing'}"
            )
        value, sign = progress.metrics[name], 1 if self._higher_is_better else -1
        if progress.best is None or sign * value > sign * progress.best["value"]:
            best = {"metric": name, "value": value, "update": update}
            model = self._state.model if self._state.ema is None else self._state.ema.module
            self._write(lambda: write_best(self._run_dir, model, best))
            progress.best = best

    def _write(self, write: Callable[[], Path]) -> None:
        if self._accelerator.is_main_process:
            try:
                write()
            except LocAtError as error:
                raise LocAtError(f"{error}; {self._standing}") from error
        self._accelerator.wait_for_everyone()

    def _spent(self) -> float:
        now = time.monotonic()
        self._state.progress.seconds += now - self._clock
        self._clock = now
        return self._state.progress.seconds
