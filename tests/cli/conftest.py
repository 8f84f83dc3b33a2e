from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_cli import Command, one_thread, train

from locatvit.cli.main import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny training; not to be written to."""
    run_dir = tmp_path_factory.mktemp("trained") / "locat"
    with one_thread():
        assert main([str(argument) for argument in train(run_dir)]) == 0
    return run_dir


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> Iterator[None]:
    with one_thread():
        yield
