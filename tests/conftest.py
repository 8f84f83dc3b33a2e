"""Shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

IS_ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
if IS_ONE_OF_SEVERAL:
    # before torch is imported: processes that share the cores wait for each other's threads otherwise
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

if not torch.cuda.is_available():
    # before anything imports triton: its kernels then run on the CPU, in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def _fresh_compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch.compile keeps on disk outlives a change of our operations, whose shapes it takes as they were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiler")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1 if IS_ONE_OF_SEVERAL else min(2, torch.get_num_threads()))
