"""Bad input through the command line: one line with the remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import logging
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_cli import MODEL, Command, files_of, image, image_folder, mask_folder, segment, train
from torch import nn

import locatvit
from locatvit.training.checkpoint import list_checkpoints, read_checkpoint


def folder_data(root: Path) -> tuple[str, ...]:
    return ("--data.name", "folder", "--data.root", str(root))


def nothing_written(run_dir: Path) -> bool:
    return not run_dir.exists()


def no_outcome(run_dir: Path) -> bool:
    """A run that began and was stopped: no result, no weights, no file that is only half there."""
    names = {Path(name).name for name in files_of(run_dir)}
    return not names & {"result.json", "model.safetensors", "head.safetensors"} and not any(
        name.endswith(".tmp") for name in names
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "'trian' is no verb; did you mean train?"),
        ("--lr 3", "'--lr' is no verb; known: data, export, .*profile, quickstart, report, "),
        ("train --lr 3", "--lr is no option; did you mean --training.lr?"),
        ("train --training.epoch 3", "--training.epoch is no option; did you mean --training.epochs"),
        ('train --training "{epochz: 3}"', "--training.epochz is no option; did you mean --training.ep"),
        ("train --model.locat.gauge true", "--model.locat.gauge is no option; did you mean .*gaug"),
        ("train runs/a", "'runs/a' stands where an option should; options are --NAME VALUE, see --help"),
        ("train --training.lr -1", "--training.lr is -1.0; it must be at least 1e-07"),
        ("train --training.lr abc", "--training.lr is 'abc'; it must be a number"),
        ("train --training.epochs 2.5", "--training.epochs is '2.5'; it must be a whole number"),
        ("train --training.clip_grad x", "--training.clip_grad is 'x'; it must be a number or null"),
        ("train --training.precision fp8", "--training.precision is 'fp8'; it must be one of no, bf16"),
        ("train --training.betas [0.9]", r"--training.betas is '\[0.9\]'; it must be a list of 2"),
        ("train --model.kwargs [1]", r"--model.kwargs is '\[1\]'; it must be a mapping such as"),
        ("train --model.locat.start x", "--model.locat.start is 'x'; it must be one of paper, ide"),
        ("train --model.locat.variance_floor -2", "--model.locat.variance_floor is -2.0; it must be 'au"),
        ("train --model.pretrained maybe", "--model.pretrained is 'maybe'; it must be true or false"),
        ("train --augment.image_size 0", "--augment.image_size is 0; it must be a whole number of pixels"),
        ("train --data.max_bad_images -1", "--data.max_bad_images is -1; it must be a whole number >= 0"),
        ("train --data.root", "--data.root has no value; give one behind it: --data.root VALUE"),
        ("segment --protocol.num_updates 3", "--protocol.num_updates is 3 and pct_start 0.25: the learning"),
        ("segment --protocol.lr -1", "--protocol.lr is -1.0; it must be a number > 0"),
        ("report", "runs must be given"),
        ("report nowhere", "no result.json at .*nowhere.*; has the run ended"),
        ("validate --run nowhere", "nowhere is no finished training run, it lacks config.yaml, model.safet"),
        ("validate", "model 'locatvit_tiny' has random weights, so .* nothing to measure; give --run, --mod"),
        ("segment --backbone nowhere", "nowhere is no finished training run, it lacks config.yaml"),
    ],
)  # fmt: skip
def test_wrong_words(
    arguments: str, message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.match(message, command.refused(*shlex.split(arguments)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  epochs: abc\n", "--training.epochs is 'abc'; it must be a whole number"),
        ("training:\n  epochz: 3\n", "--training.epochz is no option; did you mean --training.epochs"),
        ("trainin: {epochs: 3}\n", "--trainin.epochs is no option; did you mean --training.epochs?"),
        ("training: {lr: -1}\n", "--training.lr is -1.0; it must be at least"),
        ("- 1\n", "--config holds no options; it must be a YAML mapping"),
        ("training: [\n", "--config is no YAML: while parsing"),
        (None, r"--config is \S+run.yaml, which is no file that can be read; give a YAML file"),
    ],
)
def test_wrong_configuration_file(text: str | None, message: str, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    assert re.match(message, command.refused("train", "--config", file))


def test_a_process_prints_one_line_and_ends_with_2(tmp_path: Path) -> None:
    arguments = train(tmp_path / "run", "--model.name", "locatvit_tinny")
    done = subprocess.run(
        [sys.executable, "-m", "locatvit", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"locatvit: error: model 'locatvit_tinny' is unknown; did you mean locatvit_tiny.*\n", done.stderr
    )
    assert nothing_written(tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model.name", "vit_tiny_patch16_244"), "model 'vit_tiny_patch16_244' is unknown; did you mean"),
        (("--model.kwargs.depht", "3"), "model 'locatvit_tiny' cannot be created with .*depht=3.*unex"),
        (("--model.kwargs.num_classes", "7"), "model.kwargs has num_classes=7 but the data has 10 classes"),
        (("--model.locat.layers", "[5]"), r"layers is \(5,\); the model's blocks are numbered 0 to 1"),
        (("--data.name", "scene"), "unknown data set 'scene'; did you mean scenes?"),
        (("--data.train_options.colour", "1"), "data set 'scenes' has no option 'colour'"),
        (("--data.train_options.num_images", "0"), "num_images of scenes is 0; it must be 1 or more"),
        (("--data.name", "camvid"), "data set 'camvid' serves segmentation, not classification"),
        (("--training.precision", "fp16"), "precision is 'fp16'; it needs a GPU, and none is here"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(more: tuple[str, ...], message: str, command: Command, tmp_path: Path) -> None:
    if "fp16" in more and torch.accelerator.is_available():
        pytest.skip("a GPU is here, and it can compute in fp16")
    assert re.match(message, command.refused(*train(tmp_path / "run", *more)))
    assert nothing_written(tmp_path / "run")


def test_missing_data_folder(command: Command, tmp_path: Path) -> None:
    message = command.refused(*train(tmp_path / "run", data=folder_data(tmp_path / "nowhere")))
    assert re.match(r"no folder \S+nowhere/train for split 'train'; expected under \S+nowhere: train/<class>/", message)
    message = command.refused(*segment(tmp_path / "run", data=folder_data(tmp_path / "nowhere")))
    assert re.match(r"no file \S+nowhere/classes.txt; expected under \S+nowhere: images/{train,val}/NAME", message)
    assert nothing_written(tmp_path / "run")


def test_empty_data_set(command: Command, tmp_path: Path) -> None:
    (tmp_path / "data/train/cat").mkdir(parents=True)
    message = command.refused(*train(tmp_path / "run", data=folder_data(tmp_path / "data")))
    assert re.match(r"\S+data/train holds no images; expected train/<class>/", message)
    root = mask_folder(tmp_path / "masks", ["road", "sky"], count=0)
    message = command.refused(*segment(tmp_path / "run", data=folder_data(root)))
    assert re.match(r"\S+masks/images/train holds no images; expected images/", message)
    assert nothing_written(tmp_path / "run")


def broken_image_folder(root: Path) -> tuple[Path, Path]:
    """An image folder, and its one JPEG file that is cut in the middle."""
    broken = image_folder(root) / "train/dog/3.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    return root, broken


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image(num_workers: int, command: Command, tmp_path: Path) -> None:
    root, broken = broken_image_folder(tmp_path / "data")
    options = ("--training.num_workers", num_workers, "--training.batch_size", "4")
    answer = command(*train(tmp_path / "run", *options, data=folder_data(root)))
    assert answer.error.startswith(f"unreadable images: 1, more than max_bad_images 0: {broken}; the last: image")
    assert answer.error.endswith("Mend or remove them, or raise max_bad_images")
    assert no_outcome(tmp_path / "run")


def test_unreadable_image_that_is_allowed_is_skipped_and_named(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, broken = broken_image_folder(tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        options = ("--data.max_bad_images", "1", "--training.batch_size", "4")
        assert command(*train(tmp_path / "run", *options, data=folder_data(root))).code == 0
    named = [record.getMessage() for record in caplog.records if str(broken) in record.getMessage()]
    assert len(named) == 1  # over two epochs
    assert named[0].endswith("(1 unreadable so far, 1 allowed)")
    assert (tmp_path / "run/result.json").is_file()


def test_unreadable_validation_image(command: Command, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data")
    (root / "val/cat/1.jpg").write_bytes(b"")
    answer = command(*train(tmp_path / "run", "--training.batch_size", "4", data=folder_data(root)))
    assert answer.error.startswith(f"unreadable images: 1, more than max_bad_images 0: {root}/val/cat/1.jpg")
    assert no_outcome(tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val"])
def test_mask_with_a_class_out_of_range(split: str, command: Command, tmp_path: Path) -> None:
    root = mask_folder(tmp_path / "data", ["road", "sky"])
    wrong = root / "annotations" / split / "1.png"
    Image.new("L", (48, 40), 7).save(wrong)
    answer = command(*segment(tmp_path / "run", *MODEL, data=folder_data(root)))
    assert answer.error.startswith(
        f"mask {wrong} has the value 7; classes are 0 to 1, and 255 is ignored. Mend the mask or add"
    )
    assert not tmp_path.joinpath("run").exists() or no_outcome(tmp_path / "run")


def test_image_and_mask_of_different_sizes(command: Command, tmp_path: Path) -> None:
    root = mask_folder(tmp_path / "data", ["road", "sky"])
    image(1, (40, 47)).save(root / "images/train/2.png")
    answer = command(*segment(tmp_path / "run", *MODEL, data=folder_data(root)))
    assert answer.error == (
        f"image {root}/images/train/2.png is 40x47 (height x width) and its mask 40x48; the two must have one size"
    )


def test_image_without_mask(command: Command, tmp_path: Path) -> None:
    root = mask_folder(tmp_path / "data", ["road", "sky"])
    (root / "annotations/train/2.png").unlink()
    message = command.refused(*segment(tmp_path / "run", *MODEL, data=folder_data(root)))
    assert re.match(r"image \S+train/2.png has no mask \S+annotations/train/2.png; add it or remove", message)
    assert nothing_written(tmp_path / "run")


def checkpoint(path: Path, model: nn.Module | None = None) -> Path:
    model = model or locatvit.create_model(
        "locatvit_tiny", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=10
    )
    return locatvit.save_checkpoint(model, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("verb", [train, segment])
def test_damaged_checkpoints_are_seen_before_the_data(verb, name: str, command: Command, tmp_path: Path) -> None:
    """The data folder is missing, too, and it is not what the message is about."""

    def refusal(path: Path) -> str:
        arguments = verb(tmp_path / "run", "--model.checkpoint", path, data=folder_data(tmp_path / "nowhere"))
        return command.refused(*arguments, *MODEL)

    path = checkpoint(tmp_path / name)
    path.write_bytes(path.read_bytes()[:5000])
    assert re.match(rf"{path} \(5000 bytes\) is truncated or no file of weights", refusal(path))
    path.write_text("no weights")
    assert re.match(rf"{path} \(10 bytes\) is truncated or no file of weights", refusal(path))
    path.unlink()
    assert re.match(rf"no checkpoint at {path}; give a file, a folder with model.safetensors", refusal(path))
    assert nothing_written(tmp_path / "run")


def test_foreign_checkpoint(command: Command, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "w.safetensors", nn.Linear(3, 3))
    message = command.refused(*train(tmp_path / "run", "--model.checkpoint", path))
    assert re.match(rf"{path} is a foreign checkpoint: none of its 2 keys \(bias, weight\) is one of Vision", message)
    assert nothing_written(tmp_path / "run")


def test_checkpoint_of_other_classes(command: Command, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data")
    path = checkpoint(tmp_path / "w.safetensors")
    message = command.refused(*train(tmp_path / "run", "--model.checkpoint", path, data=folder_data(root)))
    assert re.search(r"its classes are 10 and the model's 2: create the model with num_classes=10", message)
    assert nothing_written(tmp_path / "run")


def test_loss_that_is_no_number(command: Command, tmp_path: Path) -> None:
    """A learning rate beyond all reason: the first update, at the foot of the schedule, is still good."""
    wild = (
        "--training.lr",
        "1e30",
        "--training.clip_grad",
        "null",
        "--training.checkpoint_every_updates",
        "1",
    )
    answer = command(*train(tmp_path / "run", *wild))
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert re.match(r"the (loss is (nan|inf)|weights are not finite) (at|after) update \d", answer.error)
    assert f"the last good checkpoint stands: {newest}. Lower the learning rate" in answer.error
    weights = read_checkpoint(newest)["model"]
    assert all(value.isfinite().all() for value in weights.values())
    assert no_outcome(tmp_path / "run")


def test_run_folder_of_another_configuration(command: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert command(*train(run_dir)).code == 0
    before = files_of(run_dir)
    for more, message in (
        (
            ("--training.seed", "3"),
            r"differs in seed \(checkpoint 42, now 3\); restore it, choose another run",
        ),
        (("--model.kwargs.depth", "3"), r"differs in model.kwargs.depth \(checkpoint 2, now 3\)"),
        (
            ("--augment.mean", "[0.4, 0.5, 0.6]"),
            r"differs in augment.mean \(checkpoint \[0.5, 0.5, 0.5\], now",
        ),
    ):
        assert re.search(message, command.refused(*train(run_dir, *more)))
        assert files_of(run_dir) == before
    message = command.refused(*segment(run_dir, *MODEL))
    assert re.search(r"cannot resume from \S+update-00000006.pt: the configuration differs in .* and \d+ more", message)
    assert files_of(run_dir) == before


def test_resumption_from_a_foreign_file(command: Command, tmp_path: Path) -> None:
    foreign = checkpoint(tmp_path / "weights.pth")
    message = command.refused(*train(tmp_path / "run", "--resume", foreign))
    assert re.match(rf"{foreign} is a torch file but not a locatvit training checkpoint \(it holds", message)
    assert re.match(
        r"no checkpoint at nowhere.pt; give",
        command.refused(*train(tmp_path / "run", "--resume", "nowhere.pt")),
    )
    (tmp_path / "text.pt").write_text("a letter")
    message = command.refused(*train(tmp_path / "run", "--resume", tmp_path / "text.pt"))
    assert re.match(r"\S+text.pt \(8 bytes\) is cut short or no torch checkpoint", message)
    assert nothing_written(tmp_path / "run")


def test_run_folder_that_cannot_be_made(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = command(*train(tmp_path / "file" / "run"))
    assert re.match(r"cannot write \S+file/run/\S+: Not a directory; .* choose another folder", answer.error)
    message = command.refused(*train(tmp_path / "run", data=folder_data(Path("x" * 300))))
    assert re.match(r"x+\S*: File name too long; check that the path exists", message)


def test_full_disk(command: Command, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: the configuration still fits, the first checkpoint does not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        answer = command(*train(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(r"cannot write \S+: File too large; .* there is no checkpoint yet", answer.error)
    assert no_outcome(tmp_path / "run")


def test_backbone_and_model_together(command: Command, trained: Path, tmp_path: Path) -> None:
    message = command.refused(*segment(tmp_path / "s", "--backbone", trained, "--model.name", "vit_tiny_patch16_224"))
    assert re.match(rf"backbone is {trained}, whose model is locatvit_tiny, and model is given too; give one", message)
    message = command.refused("validate", "--run", trained, "--model.name", "vit_tiny_patch16_224")
    assert re.match(rf"--run is {trained}, which brings its model, and --model is given too; give one", message)


def test_run_that_has_not_ended(command: Command, trained: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    message = command.refused(*segment(tmp_path / "s", "--backbone", unfinished))
    assert re.match(
        rf"{unfinished} is no finished training run, it lacks model.safetensors, result.json; run",
        message,
    )
    message = command.refused("report", unfinished)
    assert re.match(rf"no result.json at {unfinished}/result.json; has the run ended", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [\n", r"\S+config.yaml cannot be read \(while parsing"),
        ("a: 1\n", r"\S+config.yaml has no model; give the folder of a run that locatvit wrote"),
        ("model: {name: x, locat: {gauge: 1}}\n", r"\S+config.yaml is of another version of locatvit"),
    ],
)
def test_spoiled_configuration_of_a_backbone(
    text: str, message: str, command: Command, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("model.safetensors", "result.json"):
        (copy / name).write_bytes((trained / name).read_bytes())
    (copy / "config.yaml").write_text(text)
    assert re.match(message, command.refused(*segment(tmp_path / "s", "--backbone", copy)))


def test_report_of_another_kind(command: Command, trained: Path, tmp_path: Path) -> None:
    answer = command("report", trained, "--output", tmp_path / "report.pdf")
    assert answer.error == "the report's file is 'report.pdf'; its name must end in .html or .md"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", "the same command goes on from the last checkpoint, if one was written"),
        ("profile", "the same command begins anew"),
    ],
)
def test_ctrl_c_says_what_the_same_command_does(
    command: Command, monkeypatch: pytest.MonkeyPatch, verb: str, words: str
) -> None:
    def stopped(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"locatvit.cli.{verb}.run", stopped)
    answer = command(verb)
    assert answer.code == 130
    assert answer.err.splitlines()[-1] == f"locatvit: stopped; {words}"
