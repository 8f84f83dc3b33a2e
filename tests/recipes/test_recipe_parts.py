"""What all runs share, piece by piece."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from locatvit.config import LocAtConfig
from locatvit.errors import LocAtError
from locatvit.recipes.config import DataConfig, ModelConfig, SegmentRun, TrainRun
from locatvit.recipes.folder import RunFolder, fingerprint, plain_data
from locatvit.recipes.run import batch_share, build_loader, build_model, describe_data, describe_model
from locatvit.results import Result, write_result
from locatvit.training.loop import FitReport

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
REPORT = FitReport(10, 0, {"top1": 0.5}, None, None, Path("x.pt"), 2.0)


def result(date: str, run: TrainRun) -> Result:
    return Result(
        "classification", "classification", {"weights": "ab"}, {}, {"top1": 0.5}, config=plain_data(run),
        environment={"date": date},
    )  # fmt: skip


def test_plain_data_is_what_yaml_and_json_hold() -> None:
    run = TrainRun(run_dir=Path("a/b"), model=ModelConfig(locat=LocAtConfig(layers=(1, 2))))
    plain = plain_data(run)
    assert plain["run_dir"] == "a/b"
    assert plain["model"]["locat"]["layers"] == [1, 2]
    assert yaml.safe_load(yaml.safe_dump(plain)) == json.loads(json.dumps(plain)) == plain


def test_fingerprint_holds_what_makes_the_weights_and_no_place() -> None:
    run = SegmentRun(data=DataConfig("camvid", root=Path("here")))
    run = replace(run, protocol=run.protocol.resolved())
    flat = fingerprint(task="segmentation", model=run.model, data=run.data, protocol=run.protocol)
    assert flat["task"] == "segmentation"
    assert flat["model.name"] == "locatvit_tiny"
    assert flat["model.kwargs"] == {}
    assert flat["protocol.lr"] == 1e-3
    assert not any(key.endswith((".root", ".label", ".num_workers", "run_dir", ".max_bad_images")) for key in flat)
    moved = replace(run.data, root=Path("there"), label="CamVid", max_bad_images=3)
    assert fingerprint(data=moved) == fingerprint(data=run.data)
    assert fingerprint(data=replace(run.data, val_options={"a": 1})) != fingerprint(data=run.data)


def test_batch_is_shared_out_evenly() -> None:
    assert [batch_share(24, processes) for processes in (1, 2, 3, 8)] == [24, 12, 8, 3]
    with pytest.raises(
        LocAtError, match="batch_size is 24, over 5 processes together; it must be a multiple of their number"
    ):
        batch_share(24, 5)


def test_no_more_workers_than_cores() -> None:
    def workers(asked: int) -> int:
        loader = build_loader(
            DataConfig("scenes", val_options={"num_images": 2}), "classification", "val", None,
            batch_size=1, num_workers=asked, seed=0,
        )  # fmt: skip
        return loader.num_workers

    assert workers(0) == 0
    assert 1 <= workers(10_000) < 10_000


def test_model_of_a_configuration() -> None:
    plain = build_model(ModelConfig("vit_tiny_patch16_224", dict(SMALL)), num_classes=5)
    assert not hasattr(plain, "locat_config")
    with_locat = build_model(ModelConfig("vit_tiny_patch16_224", dict(SMALL), LocAtConfig(prr=False)), 5)
    ours = build_model(ModelConfig("locatvit_tiny", dict(SMALL), LocAtConfig(prr=False)), 5)
    assert with_locat.locat_config == ours.locat_config == LocAtConfig(prr=False)
    assert list(with_locat.state_dict()) == list(ours.state_dict())
    with pytest.raises(LocAtError, match="has num_classes=5 but the data has 4 classes; leave it out"):
        build_model(ModelConfig("locatvit_tiny", {**SMALL, "num_classes": 5}), 4)


def test_labels_of_twins_agree_unless_one_is_given() -> None:
    def label(config: ModelConfig) -> str:
        with torch.device("meta"):
            return describe_model(build_model(config), config)["label"]

    assert label(ModelConfig("locatvit_tiny")) == label(ModelConfig("vit_base_patch16_224")) == "ViT"
    assert label(ModelConfig("locatvit_tiny", label="mine")) == "mine"
    assert label(ModelConfig("resnet18")) == "resnet18"


def test_data_is_called_by_its_label() -> None:
    config = DataConfig("scenes", val_options={"num_images": 3})
    loader = build_loader(config, "classification", "val", None, batch_size=2, num_workers=0, seed=0)
    assert describe_data(config, loader) == {"name": "scenes", "split": "val", "images": 3, "classes": 10}
    assert describe_data(replace(config, label="shapes"), loader)["name"] == "shapes"


def test_folder_of_an_ended_run(tmp_path: Path) -> None:
    run = TrainRun(run_dir=tmp_path)
    folder = RunFolder(tmp_path, run, "w.bin", is_writer=True)
    assert folder.ended("auto") is None
    folder.begin(0)
    write_result(tmp_path, result("then", run))
    assert folder.ended("auto") is None, "the weights are missing"
    folder.weights.write_bytes(b"w")
    assert folder.ended("auto") == result("then", run)
    assert folder.ended("auto", weights="ab") == result("then", run)
    assert folder.ended("auto", weights="other") is None
    assert folder.ended("never") is None
    assert folder.ended("a/checkpoint.pt") is None
    other = replace(run, model=ModelConfig("locatvit_base"))
    assert RunFolder(tmp_path, other, "w.bin", is_writer=True).ended("auto") is None


def test_result_keeps_its_stamp_where_nothing_was_trained(tmp_path: Path) -> None:
    run = TrainRun(run_dir=tmp_path)
    folder = RunFolder(tmp_path, run, "w.bin", is_writer=True)
    folder.begin(0)
    assert folder.conclude(result("then", run), REPORT).environment == {"date": "then"}
    nothing_now = replace(REPORT, resumed_from=REPORT.updates)
    assert folder.conclude(result("now", run), nothing_now).environment == {"date": "then"}
    assert folder.conclude(result("now", run), replace(REPORT, resumed_from=5)).environment == {"date": "now"}


def test_beginning_anew_removes_the_old_outcome_and_going_on_does_not(tmp_path: Path) -> None:
    run = TrainRun(run_dir=tmp_path)
    folder = RunFolder(tmp_path, run, "w.bin", is_writer=True)
    folder.begin(0)
    write_result(tmp_path, result("then", run))
    folder.weights.write_bytes(b"w")
    folder.begin(5)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "result.json", "w.bin"}
    folder.begin(0)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_process_that_does_not_write_leaves_the_folder_alone(tmp_path: Path) -> None:
    run = TrainRun(run_dir=tmp_path)
    folder = RunFolder(tmp_path, run, "w.bin", is_writer=False)
    folder.begin(0)
    folder.conclude(result("now", run), REPORT)
    assert not list(tmp_path.iterdir())
