"""A finished run as a function of a photo: the run's own numbers come out of it, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from locatvit.data import open_dataset
from locatvit.data.config import SegmentationAugment
from locatvit.data.segmentation_sets import SETS
from locatvit.data.spec import voc_colours
from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.metrics import SegmentationMetrics
from locatvit.recipes.config import DataConfig, ModelConfig, SegmentRun
from locatvit.recipes.segmentation import segment
from locatvit.recipes.segmenter import read_segmenter
from locatvit.training.runtime import make_accelerator

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
PROTOCOLS = {
    "locat": SegmentationConfig(num_updates=6, batch_size=4, num_workers=0),
    "linear": SegmentationConfig(
        "linear", num_updates=6, batch_size=4, window_size=32, window_stride=20, num_workers=0
    ),
}
CLASSES = ("sky", "road", "tree")


def write_folder(root: Path) -> Path:
    """A segmentation folder of noise over bands of classes, every image of a size of its own."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for index in range(count):
            height, width = 37 + 9 * index, 61 - 6 * index
            mask = (np.arange(height)[:, None] * 3 // height + np.zeros((1, width), int)).astype(np.uint8)
            noise = generator.integers(0, 80, (height, width, 3)) + 60 * mask[..., None]
            mask[:, :3] = 255
            Image.fromarray(noise.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "folder")


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each protocol on a random backbone; not to be written to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for name, protocol in PROTOCOLS.items():
        segment(
            SegmentRun(
                folder / name, model=ModelConfig("locatvit_tiny", dict(SMALL)), data=DataConfig("folder", root),
                augment=SegmentationAugment(short_side=40, crop_size=(32, 32)), protocol=protocol,
            )
        )  # fmt: skip
    return {name: folder / name for name in PROTOCOLS}


@pytest.fixture
def run_dir(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoiled."""
    return Path(shutil.copytree(runs["locat"], tmp_path / "run"))


def edit(run_dir: Path, *path: str, value: object, file: str = "config.yaml") -> None:
    """Put another value into a run's file; the path's last part is the key."""
    text = (run_dir / file).read_text()
    content = yaml.safe_load(text)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (run_dir / file).write_text(yaml.safe_dump(content) if file == "config.yaml" else json.dumps(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_runs_own_numbers_come_out_to_the_last_digit(runs: dict[str, Path], root: Path, protocol: str) -> None:
    segmenter = read_segmenter(runs[protocol], make_accelerator("no").device)
    metrics = SegmentationMetrics(CLASSES, 255)
    for image, truth in (open_dataset("folder", task="segmentation", split="val", root=root)[i] for i in range(4)):
        mask = segmenter.predict(image)
        assert (mask.dtype, mask.shape) == (np.int64, (image.height, image.width))
        metrics.update(torch.from_numpy(mask)[None], truth[None])
    found, per_class = metrics.compute()
    assert found == segmenter.result.metrics
    assert per_class == segmenter.result.per_class
    assert segmenter.classes == CLASSES
    assert segmenter.colours == voc_colours(3)


def test_predictions_are_repeatable_and_leave_the_random_state_alone(runs: dict[str, Path]) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (33, 90, 3), dtype=np.uint8))
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    masks = [read_segmenter(runs["locat"]).predict(image) for _ in range(2)]
    assert (masks[0] == masks[1]).all()
    assert torch.equal(torch.rand(3), before)
    assert masks[0].shape == (33, 90)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (17, 16)])
def test_photos_of_every_shape(runs: dict[str, Path], size: tuple[int, int]) -> None:
    segmenter = read_segmenter(runs["locat"])
    assert segmenter.predict(Image.new("RGB", size[::-1], (9, 9, 9))).shape == size


def test_digests_tell_heads_apart(runs: dict[str, Path]) -> None:
    locat, again, linear = (read_segmenter(runs[name]) for name in ("locat", "locat", "linear"))
    assert (locat.digest, locat.head_digest) == (again.digest, again.head_digest)
    assert locat.head_digest != linear.head_digest
    assert locat.digest != linear.digest
    assert len(locat.digest) == len(locat.head_digest) == 16


def test_the_test_time_transform_is_part_of_the_digest(run_dir: Path) -> None:
    before = read_segmenter(run_dir)
    edit(run_dir, "augment", "short_side", value=48)
    after = read_segmenter(run_dir)
    assert after.head_digest == before.head_digest
    assert after.digest != before.digest


def test_a_benchmark_keeps_its_colours(run_dir: Path) -> None:
    camvid = SETS["camvid"]
    edit(run_dir, "data", "name", value="camvid")
    assert read_segmenter(run_dir).colours == voc_colours(3), "three classes are not CamVid's"
    edit(run_dir, "per_class", value=dict.fromkeys(camvid.classes, 0.5), file="result.json")
    with pytest.raises(LocAtError, match=r"head.safetensors is no head of this run .*; restore it, or train it again"):
        read_segmenter(run_dir)


def test_no_run_and_runs_that_will_not_do(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(LocAtError, match=r"there is no run .*nowhere; give the folder of a finished segmentation run"):
        read_segmenter(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        LocAtError, match="is no finished segmentation run, it lacks config.yaml, head.safetensors, result.json; run "
    ):
        read_segmenter(tmp_path / "empty")
    (run_dir / "result.json").unlink()
    with pytest.raises(
        LocAtError, match="run is no finished segmentation run, it lacks result.json; run `locatvit segm"
    ):
        read_segmenter(run_dir)


def test_a_run_of_another_task(run_dir: Path) -> None:
    edit(run_dir, "task", value="classification", file="result.json")
    (run_dir / "head.safetensors").unlink()
    with pytest.raises(
        LocAtError,
        match=r"is a run of classification, not of segmentation; train a head first: locatvit segment --backb",
    ):
        read_segmenter(run_dir)


@pytest.mark.parametrize("content", [b"", b"no tensors at all"])
def test_a_spoiled_head(run_dir: Path, content: bytes) -> None:
    (run_dir / "head.safetensors").write_bytes(content)
    with pytest.raises(LocAtError, match=r"head.safetensors is no head of this run .*; restore it, or train it again"):
        read_segmenter(run_dir)


def test_another_version(run_dir: Path) -> None:
    edit(run_dir, "protocol", "no_such_setting", value=1)
    with pytest.raises(LocAtError, match=r"run was written by another version of locatvit .*no_such_setting"):
        read_segmenter(run_dir)


def test_other_weights_of_the_backbone(run_dir: Path) -> None:
    edit(run_dir, "protocol", "seed", value=43)
    with pytest.raises(
        LocAtError,
        match=r"was trained on a backbone with the weights [0-9a-f]{16} \(digest\), and this one has [0-9a-f]{16}",
    ):
        read_segmenter(run_dir)


def test_weights_that_were_moved(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from locatvit.backbones.checkpoint import save_checkpoint
    from locatvit.recipes.run import build_model
    from locatvit.training.runtime import seed_everything

    seed_everything(PROTOCOLS["locat"].seed)
    save_checkpoint(build_model(ModelConfig("locatvit_tiny", dict(SMALL))), tmp_path / "w" / "model.safetensors")
    edit(run_dir, "model", "checkpoint", value="w/model.safetensors")
    with pytest.raises(
        LocAtError,
        match=r"the backbone of .*run had its weights from w/model.safetensors, where they are not any more; ",
    ):
        read_segmenter(run_dir)
    want = read_segmenter(run_dir, checkpoint=tmp_path / "w" / "model.safetensors")
    # a run whose folder was given relative to where it was started
    edit(run_dir, "run_dir", value="run")
    assert read_segmenter(run_dir).digest == want.digest
    monkeypatch.chdir(tmp_path)
    assert read_segmenter(Path("run")).digest == want.digest
