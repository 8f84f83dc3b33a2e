"""``open_dataset`` and the one list behind it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from locatvit.data import DATASETS, DataSpec, _load, open_dataset
from locatvit.errors import LocAtError


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_has_an_opener_for_its_tasks(name: str) -> None:
    for task, address in DATASETS[name].items():
        assert task in ("classification", "segmentation")
        assert {"split", "root", "transform"} <= set(inspect.signature(_load(address)).parameters)


def test_importing_the_package_and_its_configuration_loads_no_torch() -> None:
    code = "import sys, locatvit.data, locatvit.data.config; print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_name_lists_near_matches() -> None:
    with pytest.raises(LocAtError, match=r"unknown data set 'cifar10'; did you mean cifar100\?.*hfds/NAME"):
        open_dataset("cifar10", task="classification", split="train")


def test_task_that_a_data_set_does_not_serve() -> None:
    with pytest.raises(LocAtError, match=r"'camvid' serves segmentation, not classification; .*cifar100, folder"):
        open_dataset("camvid", task="classification", split="train")
    with pytest.raises(LocAtError, match=r"'torch/cifar10' is timm's and serves classification, not segmentation"):
        open_dataset("torch/cifar10", task="segmentation", split="train")


def test_task_and_split_must_be_known() -> None:
    with pytest.raises(LocAtError, match="task is 'detection'; it must be one of classification, segmentation"):
        open_dataset("scenes", task="detection", split="train")  # type: ignore[arg-type]
    with pytest.raises(LocAtError, match="split is 'test'; it must be one of train, val"):
        open_dataset("scenes", task="classification", split="test")  # type: ignore[arg-type]


def test_unknown_option_lists_near_matches() -> None:
    with pytest.raises(LocAtError, match=r"'scenes' has no option 'num_image'; did you mean num_images"):
        open_dataset("scenes", task="classification", split="train", num_image=3)
    with pytest.raises(LocAtError, match="'camvid' has no option 'download'; it has none"):
        open_dataset("camvid", task="segmentation", split="train", download=True)


def test_spec_counts_classes_and_refuses_what_a_mask_cannot_hold() -> None:
    assert DataSpec("x", "segmentation", ("a", "b"), 255).num_classes == 2
    with pytest.raises(LocAtError, match="has no classes"):
        DataSpec("x", "classification", ())
    with pytest.raises(LocAtError, match="256 classes and ignore_index 255, which is one of them"):
        DataSpec("x", "segmentation", tuple(map(str, range(256))), 255)
