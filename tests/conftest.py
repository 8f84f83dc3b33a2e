"""Shared by all tests."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports triton: its kernels then run on the CPU, in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
