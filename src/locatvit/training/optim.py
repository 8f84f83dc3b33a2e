"""The authors' optimiser and the two learning-rate schedules of the paper."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from locatvit.errors import LocAtError
from locatvit.training.config import FLOOR_LR

_DECAYED_BY_THE_AUTHORS = {"reg_token"}


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.999)
) -> AdamW:
    """AdamW with the authors' weight-decay groups (details, section 4).

    No decay on 1-d weights and biases, nor on what the model names in ``no_weight_decay()`` (timm's
    convention: position embedding, [CLS] token, ...), except that registers are decayed, as in the timm of
    the authors. GAug's weight matrices are decayed, its biases are not. Frozen weights are left out.

    Args:
        model: whose weights are trained.
        lr: peak learning rate.
        weight_decay: of the decayed group.
        betas: of AdamW; its eps is 1e-8.

    Raises:
        LocAtError: nothing to train.
    """
    from timm.optim import param_groups_weight_decay

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LocAtError(
            f"{type(model).__name__} has no weight that requires a gradient; unfreeze what shall be trained"
        )
    exempt = set(getattr(model, "no_weight_decay", set)()) - _DECAYED_BY_THE_AUTHORS
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    return AdamW(groups, lr=lr, betas=betas, eps=1e-8)


def triangular_lr(update: int, *, num_updates: int, warmup_updates: int, lr: float, floor: float = FLOOR_LR) -> float:
    """Learning rate of one update of the authors' triangle.

    ``floor`` at update 0, climbing linearly to ``lr`` at update ``warmup_updates`` exactly, then falling
    linearly towards ``floor``, which it reaches at ``num_updates``, the end of the run.

    Args:
        update: counted from 0.
        num_updates: updates of the run, warm-up included.
        warmup_updates: updates of the warm-up.
        lr: peak.
        floor: start and end.
    """
    if update < warmup_updates:
        return floor + (lr - floor) * update / warmup_updates
    if update >= num_updates:
        return floor
    return lr - (lr - floor) * (update - warmup_updates) / (num_updates - warmup_updates)


def triangular_schedule(
    optimizer: Optimizer, *, num_updates: int, warmup_updates: int, floor: float = FLOOR_LR
) -> LambdaLR:
    """``triangular_lr`` for an optimiser whose learning rate is the peak; ``step()`` once an update.

    Raises:
        LocAtError: the warm-up is longer than the run, or the peak lies below ``floor``.
    """
    peak = float(optimizer.param_groups[0]["lr"])
    if not 0 <= warmup_updates <= num_updates:
        raise LocAtError(f"warmup_updates is {warmup_updates}; it must be from 0 to num_updates, {num_updates}")
    if peak < floor:
        raise LocAtError(f"the learning rate is {peak:g}; it must be at least {floor:g}, where the schedule starts")

    def share_of_peak(update: int) -> float:
        rate = triangular_lr(update, num_updates=num_updates, warmup_updates=warmup_updates, lr=peak, floor=floor)
        return rate / peak

    return LambdaLR(optimizer, share_of_peak)


def one_cycle_schedule(
    optimizer: Optimizer, *, num_updates: int, pct_start: float = 0.25, div_factor: float = 1e4,
    final_div_factor: float = 1e4,
) -> OneCycleLR:  # fmt: skip
    """The linear one-cycle schedule of the paper's segmentation head (details, section 5).

    ``lr / div_factor`` at first, ``lr`` after ``pct_start`` of the updates, ``lr / div_factor /
    final_div_factor`` at the last; the optimiser's learning rate is the peak, its betas stay. ``step()``
    once an update.

    Raises:
        LocAtError: too few updates to climb and fall in.
    """
    if pct_start * num_updates <= 1 or num_updates < 2:
        raise LocAtError(
            f"num_updates is {num_updates} and pct_start {pct_start:g}: the climb must last more than one "
            f"update; give num_updates of at least {int(1 / pct_start) + 1}"
        )
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_updates,
        pct_start=pct_start,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
