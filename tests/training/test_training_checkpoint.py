from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from locatvit.errors import LocAtError
from locatvit.training.checkpoint import (
    best_path,
    check_fingerprint,
    checkpoint_path,
    clear_run,
    find_checkpoint,
    list_checkpoints,
    plain,
    read_checkpoint,
    read_weights,
    write_best,
    write_checkpoint,
)


def state_at(update: int) -> dict[str, Any]:
    state: dict[str, Any] = dict.fromkeys(("optimizer", "scheduler", "scaler", "ema", "processes", "fingerprint"))
    return state | {"model": {"weight": torch.full((40, 50), float(update))}, "progress": {"update": update}}


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for update in (3, 6, 9, 12):
        assert write_checkpoint(tmp_path, state_at(update)) == checkpoint_path(tmp_path, update)
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 9), checkpoint_path(tmp_path, 12)]
    found = find_checkpoint(tmp_path, "auto")
    assert found is not None
    assert found[0] == checkpoint_path(tmp_path, 12)
    assert found[1]["model"]["weight"].eq(12).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_named_and_auto_takes_the_one_before(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, state_at(3))
    path = write_checkpoint(tmp_path, state_at(6))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(LocAtError, match=f"{path.name} .*is cut short or no torch checkpoint.*; give an undamaged"):
        read_checkpoint(path)
    with pytest.raises(LocAtError, match=r"cut short"):
        find_checkpoint(tmp_path, path)
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(tmp_path, "auto")
    assert found is not None
    assert found[0] == checkpoint_path(tmp_path, 3)
    assert path.name in caplog.text
    assert "going on from the one before it" in caplog.text


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state_at(3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LocAtError, match=r"update-00000003.pt is damaged: the bytes of .*/data/\d+ do not match"):
        read_checkpoint(path)


def test_damaged_checkpoints_alone_are_no_reason_to_begin_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state_at(3)).write_bytes(b"")
    with pytest.raises(LocAtError, match=r"no checkpoint in .* can be read .*resume='never' removes them"):
        find_checkpoint(tmp_path, "auto")
    assert find_checkpoint(tmp_path, "never") is None
    clear_run(tmp_path, everything=True)
    assert find_checkpoint(tmp_path, "auto") is None


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_foreign_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    trace, path = tmp_path / "executed", checkpoint_path(tmp_path, 3)
    path.parent.mkdir()
    torch.save({"model": Malicious(trace)}, path)
    with pytest.raises(LocAtError, match=r"update-00000003.pt holds more than tensors and plain data"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(LocAtError, match=r"no torch checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # what it would have done
    assert trace.exists()


def test_other_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    with pytest.raises(LocAtError, match=r"no checkpoint at .*other.pt"):
        find_checkpoint(tmp_path, path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(LocAtError, match=r"not a locatvit training checkpoint \(it holds \['state_dict', 'epoch'\]"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(LocAtError, match=r"it holds list"):
        read_weights(path)
    torch.save({"kind": "locatvit training checkpoint", "model": {}}, path)
    with pytest.raises(LocAtError, match=r"lacks optimizer, scheduler, .*fingerprint"):
        read_checkpoint(path)


def test_best_weights_are_read_but_not_resumed_from(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = write_best(tmp_path, model, {"metric": "top1", "value": 0.5, "update": 3})
    assert path == best_path(tmp_path)
    assert read_weights(path)["weight"].equal(model.weight)
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(LocAtError, match=r"best.pt is a torch file but not a locatvit training checkpoint"):
        find_checkpoint(tmp_path, path)


def test_a_failed_write_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    good = write_checkpoint(tmp_path, state_at(3))
    checkpoint_path(tmp_path, 6).mkdir()  # a file cannot take its place
    with pytest.raises(LocAtError, match=r"cannot write .*update-00000006.pt"):
        write_checkpoint(tmp_path, state_at(6))
    assert read_checkpoint(good)["progress"] == {"update": 3}
    assert not list(good.parent.glob(".*.tmp"))


def test_fingerprints_differ_by_field(tmp_path: Path) -> None:
    saved = plain({"lr": 1e-3, "betas": (0.9, 0.999), "model": "a", "folder": tmp_path})
    check_fingerprint(saved, plain({"folder": tmp_path, "model": "a", "betas": [0.9, 0.999], "lr": 1e-3}), tmp_path)
    with pytest.raises(
        LocAtError,
        match=r"cannot resume from x.pt: .* differs in lr \(checkpoint 0.001, now 0.002\), model "
        r"\(checkpoint 'a', now 'b'\); restore it",
    ):
        check_fingerprint(saved, {**saved, "lr": 2e-3} | {"model": "b"}, Path("x.pt"))
    with pytest.raises(LocAtError, match=r"differs in seed \(checkpoint 'absent', now 1\)"):
        check_fingerprint(saved, {**saved, "seed": 1}, Path("x.pt"))
