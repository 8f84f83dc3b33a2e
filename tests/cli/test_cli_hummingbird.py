"""``locatvit hummingbird`` on something tiny: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tiny_cli import MODEL, SCENES, Command, files_of, mask_folder

from locatvit.cli.main import main
from locatvit.recipes.hummingbird_memory import MEMORY_FOLDER
from locatvit.results import read_result

SMALL = ("--augment.image_size", "32", "--protocol.num_workers", "0", "--protocol.neighbours", "7")
AUTHORS = ("--protocol.protocol", "hummingbird_locat")


def hummingbird(run_dir: Path, *more: object, data: tuple[str, ...] = SCENES) -> tuple:
    return ("hummingbird", "--run_dir", run_dir, *data, *SMALL, *more)


def folder(root: Path) -> tuple[str, ...]:
    return ("--data.name", "folder", "--data.root", str(root))


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with the trained backbone; not to be written to."""
    run_dir = tmp_path_factory.mktemp("hummingbird") / "scenes"
    assert main([str(argument) for argument in hummingbird(run_dir, "--backbone", trained)]) == 0
    return run_dir


def test_what_a_run_leaves(measured: Path, trained: Path) -> None:
    assert set(files_of(measured)) == {"config.yaml", "result.json"}
    result = read_result(measured)
    assert (result.task, result.protocol) == ("hummingbird", "hummingbird")
    assert result.model["checkpoint_run"] == trained.name
    assert result.data == {
        "name": "scenes", "split": "val", "images": 12, "classes": 11, "memory_images": 48, "memory_patches": 48 * 16,
    }  # fmt: skip
    assert set(result.metrics) == {"miou", "pixel_accuracy", "boundary_iou"}
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert result.metrics["pixel_accuracy"] > 0.2  # most of it is background
    assert set(result.per_class) == {"background", *list(result.per_class)[1:]}
    assert result.changed == {"protocol.neighbours": 7, "augment.image_size": 32}
    config = yaml.safe_load((measured / "config.yaml").read_text())
    assert config["augment"]["mean"] == [0.5, 0.5, 0.5]  # those of the backbone's training
    assert config["protocol"]["layer"] == -1
    assert config["protocol"]["unlabelled"] == "left_out"
    assert result.config["backbone"]["epochs"] == 2


def test_what_is_printed_and_that_it_is_not_run_again(command: Command, trained: Path, measured: Path) -> None:
    before = files_of(measured)
    answer = command(*hummingbird(measured, "--backbone", trained))
    assert answer.code == 0
    assert files_of(measured) == before
    assert f"{100 * read_result(measured).metrics['miou']:.2f}" in answer.out
    assert "background" in answer.out
    assert "not as the protocol has it: protocol.neighbours 7" in answer.out
    assert f"next: locatvit report {measured}" in answer.out
    assert "patches in the memory" not in answer.err


def test_backends_protocols_and_the_report(command: Command, trained: Path, measured: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    faiss, authors = tmp_path / "faiss", tmp_path / "authors"
    assert command(*hummingbird(faiss, "--backbone", trained, "--protocol.backend", "faiss")).code == 0
    ours, theirs = read_result(measured), read_result(faiss)
    assert theirs.metrics == pytest.approx(ours.metrics, abs=2e-3)
    assert theirs.environment["versions"]["faiss-cpu"]
    answer = command(*hummingbird(authors, "--backbone", trained, *AUTHORS))
    assert answer.code == 0
    assert re.search(r"authors: memory: 768 patches in the memory\n", answer.err)
    assert re.search(r"authors: queries: 12 images, mIoU \d+\.\d\d %\n", answer.err)
    result = read_result(authors)
    assert result.protocol == "hummingbird_locat"
    assert result.metrics["miou"] >= result.metrics["miou_unmatched"] > 0
    assert result.config["augment"]["std"] == [0.229, 0.224, 0.255]
    assert result.environment["versions"]["scipy"]
    assert command("report", measured, authors, "--output", tmp_path / "report.md").code == 0
    page = (tmp_path / "report.md").read_text()
    for each in (ours, result):
        assert f"| {100 * each.metrics['miou']:.2f} |" in page


def test_a_run_that_was_stopped_goes_on_with_its_memory(command: Command, tmp_path: Path) -> None:
    """The queries cannot be read at first; the memory of the training images is there by then."""
    root = mask_folder(tmp_path / "data", ["road", "sky"], count=6)
    mask = root / "annotations/val/1.png"
    good = mask.read_bytes()
    mask.write_bytes(good[:40])
    options = (*MODEL, "--protocol.memory_size", "70", "--protocol.batch_size", "4")
    answer = command(*hummingbird(tmp_path / "run", *options, data=folder(root)))
    assert answer.code == 2
    assert str(mask) in answer.error
    (part,) = (tmp_path / "run" / MEMORY_FOLDER).iterdir()
    written = part.stat().st_mtime_ns
    assert not (tmp_path / "run/result.json").exists()
    # were the training images read again, this would stop it
    for image in (root / "images/train").iterdir():
        image.write_bytes(b"")
    mask.write_bytes(good)
    stopped = command(*hummingbird(tmp_path / "run", *options, data=folder(root)))
    assert stopped.code == 0, stopped.err
    assert not part.exists()
    assert written
    whole_root = mask_folder(tmp_path / "again", ["road", "sky"], count=6)
    assert command(*hummingbird(tmp_path / "whole", *options, data=folder(whole_root))).code == 0
    stopped_result, whole = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert stopped_result.data["memory_patches"] == whole.data["memory_patches"] == 66
    assert stopped_result.metrics == whole.metrics


def test_a_folder_with_another_result_is_kept(command: Command, trained: Path, measured: Path, tmp_path: Path) -> None:
    before = files_of(measured)
    message = command.refused(*hummingbird(measured, "--backbone", trained, "--protocol.temperature", "0.1"))
    assert message == (
        f"run_dir is {measured}, which has the result of another run: it differs in protocol.temperature; choose "
        "another folder, or give --resume never, which overwrites it"
    )
    assert files_of(measured) == before
    run_dir = tmp_path / "run"
    assert command(*hummingbird(run_dir, "--backbone", trained)).code == 0
    again = ("--backbone", trained, "--protocol.temperature", "0.1", "--resume", "never")
    assert command(*hummingbird(run_dir, *again)).code == 0
    assert read_result(run_dir).changed["protocol.temperature"] == 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--protocol.neighbours", "0"), "--protocol.neighbours is 0; it must be a whole number >= 1"),
        (("--protocol.protocol", "humming"), "--protocol.protocol is 'humming'; it must be one of hummingbird, hum"),
        (("--protocol.backend", "scann"), "--protocol.backend is 'scann'; it must be one of torch, faiss"),
        (("--neighbours", "3"), r"--neighbours is no option; did you mean --protocol.neighbours\?"),
        (("--resume", "x.pt"), "resume is 'x.pt'; it must be auto or never"),
        (("--data.name", "ade"), "unknown data set 'ade'; did you mean ade20k"),
        (("--data.name", "cifar100"), "data set 'cifar100' serves classification, not segmentation"),
        (("--augment.image_size", "30"), "image_size is 30, of which the backbone makes 4 x 4 patches; it must be a"),
        (("--protocol.layer", "7"), "layer is 7, but .* has 2 layers"),
        (
            ("--protocol.max_memory_gib", "0.00002"),
            r"max_memory_gib is 2e-05, and the memory of 768 patches, 24 \+ 11 numbers each, takes 0.0001 GiB with "
            "torch; set memory_size to 144 or less .it samples patches., or raise max_memory_gib",
        ),
        (
            ("--protocol.memory_size", "30"),
            "memory_size is 30, less than a patch for each of 48 training images in 1 epochs; it must be 48 or more",
        ),
    ],
)
def test_what_cannot_be_run(more: tuple[str, ...], message: str, command: Command, tmp_path: Path) -> None:
    assert re.match(message, command(*hummingbird(tmp_path / "run", *MODEL, *more)).error)
    assert not (tmp_path / "run").exists()


def test_more_neighbours_than_patches(command: Command, tmp_path: Path) -> None:
    few = ("--data.train_options.num_images", "1", "--protocol.neighbours", "17")
    answer = command(*hummingbird(tmp_path / "run", *MODEL, *few))
    assert answer.error.startswith("neighbours is 17 and the memory has 16 patches; give fewer neighbours, or more")
