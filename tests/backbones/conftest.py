"""Shared by the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has seen nothing, and will have: torch gives up after eight models of one class."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
