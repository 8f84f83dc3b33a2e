"""Masks and overlays of photos by the command line: what is written, what is written again, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_cli import Command, files_of, image, one_thread, segment

from locatvit.cli.main import main
from locatvit.data.photos import read_stamp
from locatvit.data.scenes import MASK_CLASSES
from locatvit.data.spec import voc_colours
from locatvit.recipes.segmenter import read_segmenter
from locatvit.training.runtime import make_accelerator


@pytest.fixture(scope="module")
def run_dir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished segmentation of scenes; not to be written to."""
    folder = tmp_path_factory.mktemp("segmented") / "scenes"
    with one_thread():
        assert main([str(argument) for argument in segment(folder, "--backbone", trained)]) == 0
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of several kinds, two of one name, one of them below."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    image(0).save(folder / "a.jpg")
    image(1, (30, 70)).save(folder / "a.png")
    image(2, (64, 20)).convert("RGBA").save(folder / "sub" / "c.webp")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(3, (24, 56)).save(folder / "turned.jpg", exif=exif)
    return folder


def predict(run_dir: Path, photos: Path, output: Path, *more: object) -> tuple:
    return ("predict", run_dir, "--images", photos, "--output", output, *more)


def record_of(output: Path) -> dict:
    return json.loads((output / "predictions.json").read_text())


def test_what_is_written(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    before, out = files_of(photos), tmp_path / "out"
    answer = command(*predict(run_dir, photos, out))
    assert answer.code == 0, answer
    assert files_of(photos) == before, "photos are left alone"
    names = ("a.jpg", "a.png", "sub/c", "turned")
    assert set(files_of(out)) == {
        "predictions.json", *(f"masks/{name}.png" for name in names), *(f"overlays/{name}.jpg" for name in names)
    }  # fmt: skip
    segmenter = read_segmenter(run_dir, make_accelerator("no").device)
    with Image.open(photos / "sub" / "c.webp") as photo, Image.open(out / "masks" / "sub" / "c.png") as mask:
        assert mask.mode == "P"
        assert (np.asarray(mask) == segmenter.predict(photo.convert("RGB"))).all()
        colours = np.array(voc_colours(len(MASK_CLASSES)), np.uint8)
        assert (np.asarray(mask.convert("RGB")) == colours[np.asarray(mask)]).all()
    assert "photos: 4 predicted, 0 there already" in answer.out
    assert f"in {out}: masks/, overlays/, predictions.json" in answer.out
    assert "pixels (%)" in answer.out


def test_the_record(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(*predict(run_dir, photos, out, "--overlay", "none")).code == 0
    record, result = record_of(out), json.loads((run_dir / "result.json").read_text())
    assert record["classes"] == list(MASK_CLASSES)
    assert record["colours"] == [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in voc_colours(len(MASK_CLASSES))]
    assert (record["run"], record["protocol"], record["metrics"]) == ("scenes", "locat", result["metrics"])
    assert record["environment"]["versions"]["torch"]
    assert record["head"] == read_segmenter(run_dir).head_digest
    by_mask = {one["mask"]: one for one in record["images"]}
    assert set(by_mask) == {"masks/a.jpg.png", "masks/a.png.png", "masks/sub/c.png", "masks/turned.png"}
    for name, one in by_mask.items():
        with Image.open(out / name) as mask:
            labels = np.asarray(mask)
        assert (one["height"], one["width"]) == labels.shape
        want = {MASK_CLASSES[label]: float((labels == label).mean()) for label in np.unique(labels)}
        assert one["shares"] == pytest.approx(want)
        assert one["overlay"] is None
        assert Path(one["image"]).is_file()
    turned = by_mask["masks/turned.png"]
    assert (turned["height"], turned["width"]) == (56, 24), "upright"
    assert record["skipped"] == {}


def test_again_only_what_is_not_there(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(*predict(run_dir, photos, out)).code == 0
    first = files_of(out)
    written = {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.png")}
    answer = command(*predict(run_dir, photos, out))
    assert "photos: 0 predicted, 4 there already" in answer.out
    assert files_of(out) == first
    (out / "overlays" / "turned.jpg").unlink()
    (out / "masks" / "sub" / "c.png").unlink()
    assert "photos: 2 predicted, 2 there already" in command(*predict(run_dir, photos, out)).out
    assert files_of(out) == first
    untouched = {path for path, time in written.items() if path.stat().st_mtime_ns == time}
    assert {path.name for path in untouched} == {"a.jpg.png", "a.png.png"}
    answer = command(*predict(run_dir, photos, out, "--overwrite"))
    assert "photos: 4 predicted, 0 there already" in answer.out
    assert files_of(out) == first


def test_masks_of_another_head_are_not_taken_for_done(
    command: Command, trained: Path, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert command(*predict(run_dir, photos, out)).code == 0
    assert command(*segment(other, "--backbone", trained, "--protocol.seed", "1")).code == 0
    assert "photos: 4 predicted, 0 there already" in command(*predict(other, photos, out)).out
    assert record_of(out)["head"] == read_segmenter(other).head_digest
    assert read_stamp(out / "masks" / "turned.png")["segmenter"] == read_segmenter(other).digest
    answer = command(*predict(other, photos, out, "--opacity", "0.7"))
    assert "photos: 4 predicted, 0 there already" in answer.out, "the overlays are others"


def test_masks_of_other_photos_are_not_overwritten(
    command: Command, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command(*predict(run_dir, photos, out)).code == 0
    image(9).save(photos / "turned.jpg")
    before = files_of(out)
    answer = command(*predict(run_dir, photos, out))
    assert (
        f"{out}/masks/turned.png is there and was not made of the photo {photos}/turned.jpg as it is now; give another "
        "--output, or --overwrite"
    ) == answer.error
    assert files_of(out) == before
    assert command(*predict(run_dir, photos, out, "--overwrite")).code == 0
    assert record_of(out)["images"][3]["height"] == 40


def test_files_that_are_not_ours_are_not_overwritten(
    command: Command, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "masks" / "sub").mkdir(parents=True)
    Image.new("L", (20, 64)).save(out / "masks" / "sub" / "c.png")
    before = files_of(out)
    assert "masks/sub/c.png is there and was not made of the photo" in command(*predict(run_dir, photos, out)).error
    assert files_of(out) == before


def test_unreadable_photos_are_named_and_passed_over(
    command: Command, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    Image.new("I;16", (9, 9)).save(photos / "deep.png")
    Image.new("L", (1000, 300)).save(photos / "large.png")
    more = ("--max_megapixels", "0.2")
    refused = command(*predict(run_dir, photos, tmp_path / "no", *more, "--max_bad_images", "1"))
    assert f"unreadable photos: 2, more than max_bad_images 1: {photos}/broken.jpg, {photos}/deep.png" in refused.error
    out = tmp_path / "out"
    answer = command(*predict(run_dir, photos, out, *more, "--max_bad_images", "3"))
    assert answer.code == 0, answer
    assert "photos: 4 predicted, 0 there already, 3 unreadable" in answer.out
    skipped = record_of(out)["skipped"]
    assert [Path(path).name for path in skipped] == ["broken.jpg", "deep.png", "large.png"]
    assert "1000 x 300 pixels, more than max_megapixels 0.2" in skipped[str(photos / "large.png")]
    assert "16" in skipped[str(photos / "deep.png")]
    assert len(record_of(out)["images"]) == 4


def test_photos_none_of_which_can_be_read(command: Command, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    answer = command(*predict(run_dir, tmp_path / "photos", tmp_path / "out", "--max_bad_images", "5"))
    assert "none of the 1 photos can be read; the first: image " in answer.error
    assert not (tmp_path / "out").exists()


def test_several_places_at_once(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    image(5).save(tmp_path / "a.jpg")
    out = tmp_path / "out"
    answer = command(
        "predict", run_dir, "--images", photos / "sub", tmp_path / "a.jpg", photos / "a.jpg", "--output", out
    )
    assert answer.code == 0, answer
    assert {path.name for path in (out / "masks").iterdir()} == {"c.png", "a.jpg.png", "a.jpg-2.png"}
    images = {one["mask"]: one["image"] for one in record_of(out)["images"]}
    assert images["masks/a.jpg-2.png"] == str(photos / "a.jpg")


def test_from_a_yaml_file(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "predict.yaml"
    config.write_text(f"images: [{photos / 'sub'}]\noutput: {tmp_path / 'out'}\noverlay: png\n")
    answer = command("predict", "--config", config, run_dir)
    assert answer.code == 0, answer
    assert set(files_of(tmp_path / "out")) == {"masks/c.png", "overlays/c.png", "predictions.json"}


def test_the_input_is_never_written_to(command: Command, run_dir: Path, photos: Path) -> None:
    before = files_of(photos)
    for output in (photos, photos / "out", photos / "sub" / ".." / "x"):
        message = command.refused(*predict(run_dir, photos, output))
        assert message == f"output is {output}, within the photos' folder {photos}; give one outside of it"
    assert files_of(photos) == before


def test_outputs_are_no_photos(command: Command, run_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(photos, out / "overlays")
    message = command.refused(*predict(run_dir, out / "overlays", out))
    assert message == f"images is {out}/overlays, within the output {out}; give another output"
    assert "within the output" in command.refused(*predict(run_dir, out / "overlays" / "a.jpg", out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "--images", "{photos}"],
            "there is no run nowhere; give the folder of a finished segmentation run",
        ),
        (["{trained}", "--images", "{photos}"], "is a run of classification, not of segmentation; train a head first"),
        (
            ["{photos}", "--images", "{photos}"],
            "is no finished segmentation run, it lacks config.yaml, head.safetensors",
        ),
        (["{run}", "--images", "{trained}"], "holds no images; the endings are .jpg, .jpeg"),
        (["{run}", "--images", "gone.jpg"], "there is no file or folder gone.jpg; give photos, or a folder of photos"),
        (["{run}", "--images", "{run}/config.yaml"], "config.yaml is no image by its ending"),
        (["{run}", "--images", "{photos}", "--opacity", "3"], "opacity is 3.0; it must be in [0, 1]"),
        (["{run}", "--images", "{photos}", "--overlay", "gif"], "--overlay is 'gif'; it must be one of jpg, png, none"),
        (["{run}", "--images", "{photos}", "--overwite"], "--overwite is no option; did you mean --overwrite"),
        (["{run}"], "must be given"),
    ],
)
def test_wrong_words(
    arguments: list[str], message: str, command: Command, trained: Path, run_dir: Path, photos: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    places = {"{photos}": photos, "{trained}": trained, "{run}": run_dir}
    for short, place in places.items():
        arguments = [argument.replace(short, str(place)) for argument in arguments]
    assert message in command.refused("predict", *arguments)
    assert files_of(tmp_path) == before
