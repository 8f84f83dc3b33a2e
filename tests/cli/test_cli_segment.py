"""The protocols, the feature cache and the sheets of `locatvit segment`, in complete tiny runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_cli import SCENES, Command, files_of, mask_folder, segment

from locatvit.results import read_metrics, read_result

CACHED = ("--augment.random", "false", "--protocol.evaluate_every", "3")
LINEAR = ("--protocol.protocol", "linear", "--protocol.window_size", "24", "--protocol.window_stride", "16")


def features_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.features"))


def score(run_dir: Path) -> dict[str, float]:
    return read_result(run_dir).metrics


def test_the_linear_protocol(command: Command, trained: Path, tmp_path: Path) -> None:
    answer = command(*segment(tmp_path / "run", "--backbone", trained, *LINEAR))
    assert answer.code == 0
    result = read_result(tmp_path / "run")
    assert (result.protocol, result.config["protocol"]["norm"]) == ("linear", True)
    assert result.changed == {
        "num_updates": 6, "batch_size": 8, "window_size": 24, "window_stride": 16, "short_side": 32,
        "crop_size": [32, 32],
    }  # fmt: skip
    # the backbone was trained with 0.5: the protocol takes the model's own
    assert result.config["augment"]["mean"] == [0.5, 0.5, 0.5]
    assert "linear, changed: num_updates 6, batch_size 8, window_size 24" in answer.out.replace("\n", " ")
    head = load_file(tmp_path / "run" / "head.safetensors")
    assert head["layers.2.weight"].shape == (11, 24, 1, 1)
    assert head["layers.0.num_batches_tracked"] == 6


def test_a_setting_of_the_other_protocol_is_refused(command: Command, trained: Path, tmp_path: Path) -> None:
    message = command.refused(
        *segment(tmp_path / "run", "--backbone", trained, "--protocol.protocol", "linear", "--protocol.hidden_dim", "8")
    )
    assert "hidden_dim is 8, but protocol linear has none; leave it out" in message
    assert not (tmp_path / "run").exists()


def test_features_are_kept_read_again_and_removed_with_the_run(command: Command, trained: Path, tmp_path: Path) -> None:
    folder, options = tmp_path / "features", ("--backbone", trained, *CACHED)
    kept, own, none = (tmp_path / name for name in ("kept", "own", "none"))
    assert command(*segment(kept, *options, "--cache.dir", folder)).code == 0
    before = files_of(folder)
    assert len(before) == 48 + 12
    assert command(*segment(own, *options)).code == 0
    assert not features_in(own)
    assert command(*segment(none, *options, "--cache.max_gib", "0")).code == 0
    # nothing is known, all is known, and some is: the same head in every case
    assert command(*segment(tmp_path / "again", *options, "--cache.dir", folder)).code == 0
    assert files_of(folder) == before
    for path in features_in(folder)[::3]:
        path.unlink()
    damaged = features_in(folder)[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    mended = command(*segment(tmp_path / "mended", *options, "--cache.dir", folder))
    assert mended.code == 0
    assert files_of(folder) == before
    heads = {
        (run / "head.safetensors").read_bytes() for run in (kept, own, none, tmp_path / "again", tmp_path / "mended")
    }
    assert len(heads) == 1
    assert score(kept) == score(own) == score(none) == score(tmp_path / "mended")
    assert read_result(kept).changed["random"] is False


def test_a_cache_that_is_full_changes_no_result(
    command: Command, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--backbone", trained, *CACHED, "--cache.dir", tmp_path / "features")
    assert command(*segment(tmp_path / "free", *options)).code == 0
    for path in features_in(tmp_path / "features"):
        path.unlink()
    limit = 20 * 4_000 / 2**30
    assert command(*segment(tmp_path / "bounded", *options, "--cache.max_gib", f"{limit:.9f}")).code == 0
    assert 0 < sum(path.stat().st_size for path in features_in(tmp_path / "features")) <= limit * 2**30
    assert "is full" in caplog.text
    assert score(tmp_path / "bounded") == score(tmp_path / "free")


def test_features_of_other_settings_or_changed_files_are_not_taken(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    root = mask_folder(tmp_path / "data", ("a", "b", "c"))
    data = ("--data.name", "folder", "--data.root", str(root))
    folder = tmp_path / "features"
    options = ("--backbone", trained, *CACHED, "--cache.dir", folder)

    def added(name: str, *more: object) -> int:
        before = len(features_in(folder))
        assert command(*segment(tmp_path / name, *options, *more, data=data)).code == 0
        return len(features_in(folder)) - before

    assert added("first") == 6 + 2
    assert added("seed", "--protocol.seed", "3") == 0
    assert added("layer", "--protocol.layer", "0") == 6 + 2
    assert added("norm", "--protocol.norm", "true") == 6 + 2
    assert added("crop", "--augment.crop_size", "[24, 32]") == 6
    assert added("windows", "--protocol.window_size", "16", "--protocol.window_stride", "16") == 2
    assert added("mean", "--augment.mean", "[0.5, 0.5, 0.5]") == 6 + 2
    Image.fromarray(np.full((40, 48), 1, dtype=np.uint8)).save(root / "annotations" / "val" / "0.png")
    assert added("mask") == 1


def test_a_head_learns_from_kept_features(command: Command, trained: Path, tmp_path: Path) -> None:
    run = ("--backbone", trained, *CACHED, "--protocol.num_updates", "30")
    assert command(*segment(tmp_path / "kept", *run)).code == 0
    losses = [row["train_loss"] for row in read_metrics(tmp_path / "kept")]
    assert losses[-1] < losses[0]


def test_sheets_of_the_worst_and_the_best_images(command: Command, trained: Path, tmp_path: Path) -> None:
    answer = command(*segment(tmp_path / "run", "--backbone", trained, "--sheets", "2"))
    assert answer.code == 0
    assert "sheets/" in answer.out
    assert {path.name for path in (tmp_path / "run" / "sheets").iterdir()} == {"worst.png", "best.png"}
    for path in (tmp_path / "run" / "sheets").iterdir():
        Image.open(path).verify()
    assert command(*segment(tmp_path / "none", "--backbone", trained, "--sheets", "0")).code == 0
    assert not (tmp_path / "none" / "sheets").exists()
    assert "sheets is -1; it must be a whole number of images" in command.refused(
        *segment(tmp_path / "bad", "--backbone", trained, "--sheets", "-1")
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="bit for bit is promised on a CPU")
def test_a_linear_run_is_repeatable_from_its_config(command: Command, trained: Path, tmp_path: Path) -> None:
    assert command(*segment(tmp_path / "run", "--backbone", trained, *LINEAR)).code == 0
    again = ("segment", "--config", tmp_path / "run" / "config.yaml", "--run_dir", tmp_path / "again")
    assert command(*again).code == 0
    assert (tmp_path / "again" / "head.safetensors").read_bytes() == (
        tmp_path / "run" / "head.safetensors"
    ).read_bytes()
    assert read_result(tmp_path / "again").changed == read_result(tmp_path / "run").changed


def test_a_result_from_before_protocols_were_frozen_is_read_and_marked(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    assert command(*segment(tmp_path / "run", "--backbone", trained)).code == 0
    path = tmp_path / "run" / "result.json"
    content = json.loads(path.read_text())
    del content["changed"]
    path.write_text(json.dumps(content))
    assert read_result(path).changed == {"settings": "not recorded"}
    answer = command("report", tmp_path / "run")
    assert answer.code == 0
    assert "ViT (locat, changed)" in answer.out
    assert "locat, changed: settings not recorded." in answer.out
    assert read_result(trained).changed == {}, "a classification has no frozen protocol"


def test_pascal_context_has_its_own_sizes(command: Command, trained: Path, tmp_path: Path) -> None:
    root = mask_folder(tmp_path / "data", ("a", "b"), count=2)
    data = ("--data.name", "folder", "--data.root", str(root), "--data.label", "pascal_context")
    arguments = (
        "segment", "--run_dir", tmp_path / "run", *data, "--backbone", trained, "--protocol.num_updates", "5",
        "--protocol.batch_size", "1", "--protocol.num_workers", "0", "--sheets", "0",
    )  # fmt: skip
    assert command(*arguments).code == 0
    result = read_result(tmp_path / "run")
    assert result.changed == {"num_updates": 5, "batch_size": 1}
    augment = result.config["augment"]
    assert (augment["short_side"], augment["long_side_max"], augment["crop_size"]) == (520, 520, [480, 480])


def test_scenes_need_no_files_for_the_cache(command: Command, trained: Path, tmp_path: Path) -> None:
    assert "scenes" in SCENES
    folder = tmp_path / "features"
    options = ("--backbone", trained, "--cache.dir", folder)
    assert command(*segment(tmp_path / "a", *options)).code == 0
    assert len(features_in(folder)) == 12, "the training images are drawn anew each time"
    assert command(*segment(tmp_path / "b", *options, "--protocol.seed", "1")).code == 0
    assert len(features_in(folder)) == 12
