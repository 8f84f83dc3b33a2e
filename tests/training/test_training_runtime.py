from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch

from locatvit.errors import LocAtError
from locatvit.training.runtime import (
    describe_device,
    make_accelerator,
    preserved_rng,
    rng_state,
    seed_everything,
    set_rng_state,
)

CPU = torch.device("cpu")


def draws() -> tuple[float, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.randn(3).sum().item(),
    )


def test_a_seed_fixes_all_generators_and_processes_differ() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(3, process_index=1)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_random_states_survive_a_weights_only_file() -> None:
    seed_everything(3)
    draws()  # a normal number is then kept back in python's and numpy's generators
    buffer = io.BytesIO()
    torch.save(rng_state(CPU), buffer)
    expected = draws()
    buffer.seek(0)
    set_rng_state(torch.load(buffer, weights_only=True), CPU)
    assert draws() == expected


def test_preserved_rng_leaves_the_stream_where_it_was_also_after_an_error() -> None:
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    with preserved_rng(CPU):
        draws()
    with pytest.raises(ZeroDivisionError), preserved_rng(CPU):
        draws()[0] / 0
    assert draws() == expected


def test_one_process_may_train_in_several_precisions() -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        accelerator = make_accelerator(precision)
        with accelerator.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about a machine without an accelerator")
def test_a_cpu_computes_deterministically_and_not_in_fp16() -> None:
    make_accelerator("no")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.empty(100).shape == (100,)
    with pytest.raises(LocAtError, match=r"precision is 'fp16'; it needs a GPU, and none is here; use 'bf16' or 'no'"):
        make_accelerator("fp16")
    with pytest.raises(LocAtError, match=r"precision is 'half'; it must be one of no, bf16, fp16"):
        make_accelerator("half")  # type: ignore[arg-type]


def test_device_in_words() -> None:
    assert describe_device("cpu") == "cpu, 1 thread"
    torch.set_num_threads(2)
    assert describe_device("cpu") == "cpu, 2 threads"
    torch.set_num_threads(1)
    if not torch.accelerator.is_available():
        assert describe_device() == describe_device("cpu")
