"""The same batches whatever the workers, wherever a run is taken up, and with Accelerate around."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from data_files import error_of
from torch.utils.data import IterableDataset

from locatvit.data import DataSpec
from locatvit.data.loader import Loader, make_loader
from locatvit.errors import LocAtError


class Numbers:
    """Items that show their index and what the three generators give them."""

    spec = DataSpec("numbers", "classification", ("a",))
    transform = None

    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()]), 0

    def describe(self, index: int) -> str:
        return str(index)


def batches(loader: Any) -> list[list[list[float]]]:
    return [images.tolist() for images, _ in loader]


def indices(loader: Any) -> list[list[int]]:
    return [[int(item[0]) for item in batch] for batch in batches(loader)]


def epoch_of(epoch: int, num_workers: int = 0, skip: int = 0, seed: int = 3) -> list[list[list[float]]]:
    loader = make_loader(Numbers(23), batch_size=5, training=True, num_workers=num_workers, seed=seed)
    loader.set_epoch(epoch, skip_batches=skip)
    return batches(loader)


def test_batches_do_not_depend_on_workers() -> None:
    assert epoch_of(1, num_workers=2) == epoch_of(1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_epoch_gives_the_remaining_batches(num_workers: int) -> None:
    assert epoch_of(7, num_workers, skip=2) == epoch_of(7)[2:]


def test_skipped_batches_are_not_read() -> None:
    dataset = Numbers(20)
    loader = make_loader(dataset, batch_size=5, training=True)
    loader.set_epoch(0, skip_batches=3)
    assert len(loader) == 4
    assert len(batches(loader)) == 1
    assert len(dataset.read) == 5
    assert len(batches(loader)) == 4, "the skip holds for one iteration"
    loader.set_epoch(0, skip_batches=4)
    assert batches(loader) == []


def test_epochs_seeds_and_samples_differ_in_order_and_augmentation() -> None:
    flat = {
        name: {item[0]: tuple(item[1:]) for batch in read for item in batch}
        for name, read in (("first", epoch_of(0)), ("second", epoch_of(1)), ("seeded", epoch_of(0, seed=4)))
    }
    assert len({tuple(read) for read in flat.values()}) == 3, "order"
    drawn = [values for read in flat.values() for values in read.values()]
    assert len(set(drawn)) == len(drawn) == 60
    assert all(len(set(values)) == 3 for values in drawn), "the three generators are seeded apart"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_streams_are_untouched(num_workers: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    epoch_of(0, num_workers)
    assert draw() == expected


def test_evaluation_reads_all_in_order() -> None:
    loader = make_loader(Numbers(7), batch_size=3, training=False)
    assert indices(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3


def test_training_drops_the_incomplete_batch_but_never_all() -> None:
    read = indices(make_loader(Numbers(7), batch_size=3, training=True))
    assert [len(batch) for batch in read] == [3, 3]
    assert len({index for batch in read for index in batch}) == 6
    small = make_loader(Numbers(7), batch_size=8, training=True)
    assert [sorted(batch) for batch in indices(small)] == [[0, 1, 2, 3, 4, 5, 6]]


def prepared(loader: Loader) -> Any:
    return Accelerator(cpu=True).prepare(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_accelerate_gives_the_same_batches(num_workers: int) -> None:
    loader = make_loader(Numbers(23), batch_size=5, training=True, num_workers=num_workers, seed=3)
    wrapped = prepared(loader)
    for epoch, skip in ((2, 0), (3, 1), (0, 3)):
        loader.set_epoch(epoch, skip_batches=skip)
        assert batches(wrapped) == epoch_of(epoch)[skip:]
    assert len(wrapped) == 4


def test_epoch_of_the_prepared_loader_holds_too() -> None:
    wrapped = prepared(make_loader(Numbers(23), batch_size=5, training=True, seed=3))
    assert [batches(wrapped), batches(wrapped)] == [epoch_of(0), epoch_of(1)], "it counts by itself"
    wrapped.set_epoch(5)
    assert batches(wrapped) == epoch_of(5)


def test_two_processes_share_the_batches() -> None:
    loader = make_loader(Numbers(23), batch_size=5, training=True, seed=3)
    shares = []
    for process in range(2):
        share = prepare_data_loader(loader, num_processes=2, process_index=process)
        loader.set_epoch(6)
        shares.append(batches(share))
    first, second = shares
    assert [first[0], second[0], first[1], second[1]] == epoch_of(6)


def test_errors_of_workers_survive_accelerate() -> None:
    class Faulty(Numbers):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            raise LocAtError(f"mask {index} has the value 12; LocAtError: is a word in it")

    wrapped = prepared(make_loader(Faulty(4), batch_size=2, training=False, num_workers=1))
    assert str(error_of(wrapped)) == "mask 0 has the value 12; LocAtError: is a word in it"


def test_images_of_several_sizes_in_a_batch() -> None:
    class Growing(Numbers):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(3, 5, 7 + index), 0

    with pytest.raises(LocAtError, match=r"^images of sizes 5x7, 5x8 in one batch; use batch_size 1, or a transform"):
        batches(make_loader(Growing(2), batch_size=2, training=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, 1 or more"),
        ({"num_workers": -1}, "num_workers is -1; it must be a whole number, 0 or more"),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
        ({"max_bad_images": -1}, "max_bad_images is -1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        make_loader(Numbers(3), **({"batch_size": 1, "training": True} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("skip", [-1, 5])
def test_skip_out_of_range(skip: int) -> None:
    with pytest.raises(LocAtError, match=rf"skip_batches is {skip}; the epoch has 4 batches"):
        epoch_of(0, skip=skip)


def test_empty_and_foreign_data_sets() -> None:
    with pytest.raises(LocAtError, match="the data set is empty"):
        make_loader(Numbers(0), batch_size=1, training=False)

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(LocAtError, match="Stream has no random access"):
        make_loader(Stream(), batch_size=1, training=False)  # type: ignore[arg-type]


def test_spec_is_at_hand() -> None:
    loader = make_loader(Numbers(3), batch_size=2, training=True)
    assert loader.spec is Numbers.spec
    assert loader.num_images == 3  # the one that training leaves out is one of them
