"""``locatvit data``: both commands from the command line, their messages included."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli_help import options_in
from test_cli_runs import signal_in_the_middle
from tiny_cli import Command, files_of

import official_layouts as official
from locatvit.cli.data import COMMANDS
from locatvit.cli.main import main
from locatvit.data.prepare import CONVERTERS
from locatvit.data.segmentation_sets import SETS

ADE = {"train": [[0, 1, 150], [2]], "val": [[0, 13]]}


def test_help_names_every_data_set_page_and_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: locatvit data prepare NAME [options]\n")
    assert "\nexamples:\n" in text
    for name, known in SETS.items():
        assert re.search(rf"^  {name}$", text, re.MULTILINE)
        assert known.page in text
        assert known.layout in text
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\w", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("prepare", {"--root", "--output", "--num_workers", "--partial", "--train_list", "--sbd", "--config"}),
        ("inspect", {"--data.name", "--data.root", "--output", "--images", "--max_images", "--split", "--config"}),
    ],
)
def test_help_of_a_command(command: str, options: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["data", command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert re.match(rf"usage: locatvit data {command} .*\[options\]\n", text)
    assert "\nexamples:\n" in text
    found = options_in(text)
    assert options <= set(found)
    assert all(len(help_) > 8 for help_ in found.values())


@pytest.mark.parametrize("arguments", [["data", "--help"], *(["data", command, "--help"] for command in COMMANDS)])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from locatvit.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'matplotlib', 'numpy', 'PIL', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "locatvit data has no command; give prepare or inspect, see locatvit data --help"),
        (("prepair",), "'prepair' is no command of locatvit data; give prepare or inspect"),
        (("prepare",), f"no data set is named; write locatvit data prepare NAME ..., one of {', '.join(CONVERTERS)}"),
        (("prepare", "ade"), r"unknown data set 'ade'; did you mean ade20k\?"),
        (("prepare", "ade20k"), "--root must be given: the folder of the official download, from http://sceneparsing"),
        (("prepare", "ade20k", "--rooot", "x"), r"--rooot is no option; did you mean --root"),
        (("prepare", "ade20k", "--root", "nowhere"), "no folder nowhere; give the official download of ADE20K"),
        (("prepare", "ade20k", "--root", ".", "--num_workers", "99"), "num_workers is 99; it must be a whole number"),
        (("prepare", "voc2012", "--root", ".", "--train_list", "all"), "--train_list is 'all'; it must be one of tra"),
        (("inspect", "--data.name", "cifar100"), "data set 'cifar100' serves classification, not segm.* ade20k"),
        (("inspect", "--data.name", "ade20k", "--data.root", "."), "ade20k in . is not prepared: .* ade20k --root ."),
        (("inspect", "--output", "sheet.jpg"), "output is sheet.jpg; it must end in .png"),
        (("inspect", "--images", "0"), "images is 0; it must be a whole number from 1 to 100"),
        (("inspect", "--max_images", "0"), "max_images is 0; it must be a whole number >= 1, or null for all"),
        (("inspect", "--split", "test"), "--split is 'test'; it must be one of both, train, val"),
    ],
)  # fmt: skip
def test_wrong_words(
    arguments: tuple[str, ...], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.match(message, command.refused("data", *arguments))
    assert not list(tmp_path.iterdir())


def test_prepare_then_inspect(command: Command, tmp_path: Path) -> None:
    root = official.ade20k(tmp_path / "ade", ADE)
    refused = command.refused("data", "prepare", "ade20k", "--root", root)
    assert re.match(
        r"ade20k in \S+: 2 of 20210 train images, 1 of 2000 val images; missing: .*; give --partial", refused
    )
    assert not (root / "locatvit_ade20k").exists()

    answer = command("data", "prepare", "ade20k", "--root", root, "--partial")
    assert answer.code == 0
    assert re.search(r"train +│ +2 │ +20,210", answer.out)
    assert re.search(r"val +│ +1 │ +2,000", answer.out)
    assert f"written: {root}/locatvit_ade20k (3 images converted, 0 there already;" in answer.out
    assert "missing, and left out: image and mask of ADE_train_00000003" in answer.out
    assert "This is a part of the data set: its numbers do not compare with published ones." in answer.out
    assert f"next: locatvit data inspect --data.name ade20k --data.root {root}/locatvit_ade20k" in answer.out
    before = files_of(root)
    again = command("data", "prepare", "ade20k", "--root", root, "--partial")
    assert "(0 images converted, 3 there already;" in again.out
    assert files_of(root) == before

    sheet = tmp_path / "out/ade.png"
    answer = command(
        "data", "inspect", "--data.name", "ade20k", "--data.root", root, "--output", sheet, "--images", "3"
    )
    assert answer.code == 0
    assert re.search(r"images +│ +2 │ +1 │", answer.out)
    assert re.search(r"12 +│ person +│ +0.00 │ +0 │ +50.00 │ +1 │", answer.out)
    assert "train shows no pixel of 147 classes: sky, floor, tree, ceiling, road and 142 more" in answer.out
    assert f"written: {sheet}, {tmp_path}/out/ade.json" in answer.out
    numbers = json.loads((tmp_path / "out/ade.json").read_text())
    assert numbers["splits"]["val"]["class_shares"]["person"] == 0.5
    assert numbers["splits"]["val"]["ignored_share"] == 0.5
    assert numbers["splits"]["train"]["class_images"]["flag"] == 1
    assert numbers["splits"]["train"]["sizes"] == [{"height": 6, "width": 10, "images": 2}]
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_an_interrupted_preparation_says_that_its_files_are_kept(command: Command, tmp_path: Path) -> None:
    """Ctrl-C reaches the converting process, too."""
    root = official.ade20k(tmp_path / "ade", {"train": [[1, 2]] * 600, "val": [[2]]})
    prepare = ("data", "prepare", "ade20k", "--root", root, "--partial", "--num_workers", "1")
    folder = root / "locatvit_ade20k" / "images" / "train"

    def images(folder: Path) -> list[Path]:
        return sorted(folder.glob("*.jpg"))

    code, errors = signal_in_the_middle(signal.SIGINT, folder, *prepare, written=images)
    assert code == 130
    assert errors.splitlines()[-1] == (
        "locatvit: stopped; the files that are there already are kept, and the same command goes on with the rest"
    )
    assert "Traceback" not in errors
    kept = len(images(folder))
    assert 0 < kept < 600
    assert f"({601 - kept} images converted, {kept} there already;" in command(*prepare).out
    assert len(images(folder)) == 600


def test_a_folder_is_checked(command: Command, tmp_path: Path) -> None:
    root = official.prepared(tmp_path / "own", ["road", "sky"], {"train": [[0, 1], [255]], "val": [[1]]})
    answer = command("data", "prepare", "folder", "--root", root)
    assert answer.code == 0
    assert "checked: 3 images with their masks" in answer.out
    assert "the layout is right, nothing was written" in answer.out
    (root / "annotations/train/1.png").unlink()
    message = command.refused("data", "prepare", "folder", "--root", root)
    assert re.match(
        r"folder in \S+: 1 train images with masks, 1 val images with masks; missing: the mask of \S+train/1.png; "
        r"give --partial to go on", message,
    )  # fmt: skip


def test_inspect_names_faulty_files_and_goes_on(command: Command, tmp_path: Path) -> None:
    root = official.prepared(tmp_path / "own", ["road", "sky"], {"train": [[0, 1], [0], [1]], "val": [[1]]})
    (root / "images/train/0.png").write_bytes(b"broken")
    official.save_labels(root / "annotations/train/2.png", official.columns([2]))
    answer = command("data", "inspect", "--data.root", root, "--output", tmp_path / "sheet.png")
    assert answer.code == 0
    assert re.search(r"unreadable +│ +1 │ +0 │", answer.out)
    assert re.search(r"breaking a rule +│ +1 │ +0 │", answer.out)
    flat = " ".join(answer.out.split())
    assert f"image {root}/images/train/0.png cannot be read" in flat
    assert "2.png has the value 2; classes are 0 to 1" in flat
    assert (tmp_path / "sheet.png").is_file()
    (root / "images/val/0.png").write_bytes(b"")
    only = command("data", "inspect", "--data.root", root, "--split", "val")
    assert re.match(r"not one image of folder can be used; the first: image \S+val/0.png cannot be read", only.error)


def test_inspect_suspects_masks_without_an_ignored_pixel(command: Command, tmp_path: Path) -> None:
    root = official.prepared(tmp_path, SETS["pascal_context"].classes, {"train": [[0, 1]], "val": [[1]]})
    answer = command("data", "inspect", "--data.name", "pascal_context", "--data.root", root)
    flat = " ".join(answer.out.split())
    assert (
        "train has no pixel of 255, though PASCAL Context (59 classes, without background) has pixels without" in flat
    )
    assert "if these masks were not made by locatvit data prepare pascal_context, they may be off by one" in flat


def test_inspect_of_scenes_and_of_some_images(command: Command) -> None:
    options = "{num_images: 6, image_size: 16}"
    answer = command(
        "data", "inspect", "--data.name", "scenes", "--data.train_options", options, "--data.val_options", options,
        "--max_images", "2", "--split", "train",
    )  # fmt: skip
    assert answer.code == 0
    assert re.search(r"read, in order +│ +2 │", answer.out)
    assert re.search(r"most frequent size +│ +16 x 16: 2 │", answer.out)
