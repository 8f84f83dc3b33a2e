"""What the tests of kernels share."""

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is full of NaN, so what no kernel writes shows."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan")))


@pytest.fixture(autouse=True)
def _two_threads():
    """What is shared out between threads is cut by their number."""
    torch.set_num_threads(2)
