"""Settings and the list of protocols."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from locatvit.errors import LocAtError
from locatvit.evaluation import PROTOCOLS, SegmentationConfig, get_protocol
from locatvit.evaluation.config import PRESETS


def test_the_defaults_are_the_papers():
    config = SegmentationConfig().resolved()
    assert (config.num_updates, config.batch_size, config.evaluate_every) == (20_000, 32, 4_000)
    assert (config.lr, config.weight_decay, config.pct_start) == (1e-3, 0.01, 0.25)
    assert config.lr / config.div_factor == pytest.approx(1e-7)
    assert config.lr / config.div_factor / config.final_div_factor == pytest.approx(1e-11)
    assert (config.hidden_dim, config.layer, config.norm, config.protocol) == (512, -1, False, "locat")
    assert not config.is_windowed


def test_the_linear_protocol_is_dinov2s():
    config = SegmentationConfig("linear").resolved()
    assert (config.num_updates, config.batch_size) == (40_000, 16)
    assert (config.lr, config.weight_decay, config.dropout) == (1e-3, 1e-4, 0)
    assert config.pct_start * config.num_updates == 1500
    assert (config.window_size, config.window_stride, config.is_windowed) == (512, 341, True)
    assert (config.layer, config.norm, config.precision) == (-1, True, "no")


@pytest.mark.parametrize("name", PRESETS)
def test_a_frozen_protocol_is_unchanged_and_resolves_to_itself(name):
    config = SegmentationConfig(name)
    assert config.changed() == {}
    assert config.resolved().changed() == {}
    assert config.resolved().resolved() == config.resolved()
    with pytest.raises(TypeError, match="does not support item assignment"):
        PRESETS[name]["lr"] = 1.0


def test_what_is_changed_is_named_and_what_is_free_is_not():
    config = SegmentationConfig(num_updates=600, batch_size=32, seed=1, num_workers=0, evaluate_every=300, norm=True)
    assert config.changed() == {"num_updates": 600, "norm": True}
    assert SegmentationConfig("linear", window_size=0, precision="bf16").changed() == {
        "window_size": 0, "precision": "bf16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "option", "message"),
    [
        ("linear", {"hidden_dim": 64}, "hidden_dim is 64, but protocol linear has none; leave it out"),
        ("linear", {"final_div_factor": 2.0}, "final_div_factor is 2.0, but protocol linear has none"),
        ("locat", {"dropout": 0.1}, "dropout is 0.1, but protocol locat has none; leave it out"),
        ("linear", {"dropout": 1.0}, r"dropout is 1.0; it must be a share in \[0, 1\)"),
        ("linear", {"window_stride": 600}, "window_size is 512 and window_stride 600; the stride must be from 1"),
        ("locat", {"window_size": 64}, "window_size is 64 and window_stride 0; the stride must be from 1"),
        ("linear", {"window_size": -1}, "window_size is -1; it must be a whole number >= 0"),
    ],
)
def test_what_a_protocol_does_not_take_is_refused(protocol, option, message):
    with pytest.raises(LocAtError, match=message):
        SegmentationConfig(protocol, **option)


def test_the_linear_protocol_may_be_short():
    assert SegmentationConfig("linear", num_updates=6).resolved().num_updates == 6


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("num_updates", 0, "num_updates is 0; it must be a whole number >= 1"),
        ("batch_size", -2, "batch_size is -2; it must be a whole number >= 1"),
        ("evaluate_every", 0, "evaluate_every is 0"),
        ("hidden_dim", 0, "hidden_dim is 0"),
        ("lr", -0.1, "lr is -0.1; it must be a number > 0"),
        ("lr", float("nan"), "lr is nan"),
        ("lr", float("inf"), "lr is inf"),
        ("weight_decay", -1.0, "weight_decay is -1.0; it must be a number >= 0"),
        ("pct_start", 1.0, "pct_start is 1.0; it must be a share between 0 and 1"),
        ("div_factor", 0.5, "div_factor is 0.5; it must be a number >= 1"),
        ("final_div_factor", 0.0, "final_div_factor is 0.0"),
        ("seed", -1, "seed is -1; it must be a whole number from 0 to"),
        ("num_workers", -1, "num_workers is -1"),
        ("precision", "fp8", "precision is 'fp8'; it must be one of no, bf16, fp16"),
        ("protocol", "locate", "protocol is 'locate'; it must be one of locat"),
        ("num_updates", 4, "the learning rate must climb .* num_updates of at least 5"),
    ],
)
def test_a_value_outside_its_range_is_refused(field, value, rule):
    with pytest.raises(LocAtError, match=rule) as error:
        SegmentationConfig(**{field: value})
    assert "\n" not in str(error.value)


def test_the_fewest_updates_that_the_message_names_are_enough():
    assert SegmentationConfig(num_updates=5).num_updates == 5


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SegmentationConfig().lr = 1.0


def test_the_list_of_protocols_needs_no_torch():
    code = "import sys, locatvit.evaluation; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_settings_that_know_its_name(name):
    protocol = get_protocol(name)
    assert protocol.name == name
    assert protocol.measures
    assert protocol.citation
    assert protocol.config(protocol=name).protocol == name


def test_an_unknown_protocol_lists_the_near_ones():
    with pytest.raises(LocAtError, match=r"unknown protocol 'loct'; did you mean locat\?"):
        get_protocol("loct")
