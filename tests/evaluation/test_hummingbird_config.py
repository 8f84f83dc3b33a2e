"""The settings of dense retrieval: what each protocol means, and what is not the protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest

from locatvit.errors import LocAtError
from locatvit.evaluation.hummingbird_config import HummingbirdConfig

AUTHORS = HummingbirdConfig(protocol="hummingbird_locat")


def test_what_both_protocols_share_is_the_papers() -> None:
    for config in (HummingbirdConfig(), AUTHORS):
        assert (config.neighbours, config.temperature, config.memory_size) == (30, 0.02, None)
        assert (config.augmentation_epochs, config.norm) == (1, False)


def test_what_the_protocols_differ_in() -> None:
    sane, authors = (config.resolved("voc2012", -2) for config in (HummingbirdConfig(), AUTHORS))
    assert (sane.unlabelled, sane.matching, sane.mean_over, sane.measured_at) == (
        "left_out", "identity", "shown", "mask",
    )  # fmt: skip
    assert (authors.unlabelled, authors.matching, authors.mean_over, authors.measured_at) == (
        "first_class", "hungarian", "all", "query",
    )  # fmt: skip
    assert AUTHORS.resolved("ade20k", -1).unlabelled == "extra_class"
    assert HummingbirdConfig().resolved("ade20k", -1).unlabelled == "left_out"
    assert sane.layer == authors.layer == -2


def test_what_is_given_stays() -> None:
    config = replace(AUTHORS, matching="identity", layer=3).resolved("ade20k", -1)
    assert (config.matching, config.layer, config.mean_over) == ("identity", 3, "all")
    assert config.resolved("ade20k", -1) == config


def test_what_is_not_the_protocol_is_named() -> None:
    assert HummingbirdConfig().changed("camvid", -1) == {}
    free = replace(AUTHORS, backend="faiss", batch_size=3, num_workers=0, seed=5, max_memory_gib=1, sampling="uniform")
    assert free.changed("ade20k", -1) == {}
    assert free.resolved("ade20k", -2).changed("ade20k", -2) == {}
    other = replace(AUTHORS, neighbours=20, unlabelled="first_class", memory_size=100, sampling="uniform", layer=-1)
    assert other.changed("ade20k", -2) == {
        "neighbours": 20, "memory_size": 100, "sampling": "uniform", "layer": -1, "unlabelled": "first_class",
    }  # fmt: skip
    assert "unlabelled" not in other.changed("voc2012", -2)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("neighbours", 0, "neighbours is 0; it must be a whole number >= 1"),
        ("augmentation_epochs", 0, "augmentation_epochs is 0"),
        ("batch_size", -1, "batch_size is -1"),
        ("memory_size", 29, r"memory_size is 29; it must be neighbours \(30\) or more, or null for all patches"),
        ("temperature", 0, "temperature is 0; it must be a number > 0"),
        ("temperature", float("nan"), "temperature is nan"),
        ("max_memory_gib", 0.0, "max_memory_gib is 0.0; it must be a number > 0, in GiB"),
        ("seed", -1, "seed is -1"),
        ("num_workers", -1, "num_workers is -1; it must be a whole number >= 0"),
        ("protocol", "humming", "protocol is 'humming'; it must be one of hummingbird, hummingbird_locat"),
        ("matching", "greedy", "matching is 'greedy'; it must be one of identity, hungarian"),
        ("backend", "scann", "backend is 'scann'; it must be one of torch, faiss"),
        ("unlabelled", "x", "unlabelled is 'x'; it must be one of left_out, first_class, extra_class"),
    ],
)
def test_a_value_outside_its_range_is_refused(field: str, value: object, rule: str) -> None:
    with pytest.raises(LocAtError, match=rule):
        HummingbirdConfig(**{field: value})
