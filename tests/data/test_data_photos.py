"""Photos as cameras leave them, and masks with their classes' colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locatvit.data.decoding import UnreadableImage, decode_mask
from locatvit.data.photos import find_photos, read_photo, read_stamp, write_mask
from locatvit.errors import LocAtError

COLOURS = ((1, 2, 3), (200, 100, 0), (0, 255, 0))
ORIENTATION = 0x0112


def corners() -> Image.Image:
    """8 x 6 (height x width) pixels, its upper left quarter red."""
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[:4, :3] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (8, 6), (1, 1)),
        (3, (8, 6), (6, 4)),  # upside down
        (6, (6, 8), (1, 6)),  # to be turned clockwise: the upper left comes to the upper right
        (8, (6, 8), (4, 1)),
    ],
)
def test_photos_are_turned_as_the_camera_was_held(
    tmp_path: Path, ending: str, orientation: int, size: tuple[int, int], red: tuple[int, int]
) -> None:
    path, exif = tmp_path / f"a{ending}", Image.Exif()
    exif[ORIENTATION] = orientation
    corners().save(path, exif=exif, quality=100)
    photo = read_photo(path, 1.0)
    assert (photo.mode, (photo.height, photo.width)) == ("RGB", size)
    pixels = np.asarray(photo).astype(int)
    assert pixels[red][0] > 150
    assert pixels[size[0] - 1 - red[0], size[1] - 1 - red[1]][0] < 100


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 4), 1).save(path)
    photo = read_photo(path, 1.0)
    assert (photo.mode, photo.size) == ("RGB", (5, 4))


def test_what_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (1200, 1000)).save(path)
    assert read_photo(path, 1.2).size == (1200, 1000)
    with pytest.raises(
        UnreadableImage,
        match=r"large.png has 1200 x 1000 pixels, more than max_megapixels 1.1; make it smaller, or raise",
    ):
        read_photo(path, 1.1)
    path.write_bytes(path.read_bytes()[:60])  # its head alone
    with pytest.raises(UnreadableImage, match="more than max_megapixels 0.5"):
        read_photo(path, 0.5)


def test_a_bomb_is_refused_by_its_head_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (11_000, 11_000)).save(path)
    with pytest.raises(UnreadableImage, match="bomb.png has 11000 x 11000 pixels, more than max_megapixels 50"):
        read_photo(path, 50)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="image .*broken.jpg cannot be read"):
        read_photo(path, 1.0)


def test_broken_exif_data_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    corners().save(path, exif=b"Exif\x00\x00XX\x00\x00garbage")
    with pytest.raises(UnreadableImage, match="a.png has broken EXIF data .*; save it anew without them"):
        read_photo(path, 1.0)


def test_photos_are_found_below_folders_and_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/deep/c.webp", ".hidden.png", ".git/d.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        corners().save(tmp_path / "in" / name, format="PNG")
    corners().save(tmp_path / "single.png")
    found = find_photos([tmp_path / "in", tmp_path / "single.png", tmp_path / "in" / "a.png"])
    assert found == {
        tmp_path / "in" / "a.png": "a.png",
        tmp_path / "in" / "b.JPG": "b.JPG",
        tmp_path / "in" / "sub" / "deep" / "c.webp": "sub/deep/c.webp",
        tmp_path / "single.png": "single.png",
    }


def test_places_without_photos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(LocAtError, match=r"holds no images; the endings are .jpg, .jpeg, .png"):
        find_photos([tmp_path])
    with pytest.raises(LocAtError, match=r"notes.txt is no image by its ending; the endings are .jpg"):
        find_photos([tmp_path / "notes.txt"])
    with pytest.raises(LocAtError, match=r"there is no file or folder .*nowhere; give photos, or a folder of photos"):
        find_photos([tmp_path / "nowhere"])


def test_masks_are_classes_that_show_their_colours(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [2, 1, 0]])
    path = tmp_path / "masks" / "a.png"
    write_mask(path, mask, COLOURS, {"head": "ab"})
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        assert (np.asarray(image) == mask).all()
        assert (np.asarray(image.convert("RGB")) == np.array(COLOURS, np.uint8)[mask]).all()
    assert (decode_mask(path) == mask).all()
    header = path.read_bytes()[:33]
    assert header[24] == 8, "bits a pixel"
    assert header[25] == 3, "a palette's indices"
    assert read_stamp(path) == {"head": "ab"}


def test_many_classes_fit_into_a_mask(tmp_path: Path) -> None:
    colours = tuple((number, number, number) for number in range(255))
    mask = np.arange(255).reshape(15, 17)
    write_mask(tmp_path / "a.png", mask, colours, {})
    assert (decode_mask(tmp_path / "a.png") == mask).all()


def test_only_our_masks_have_a_stamp(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert read_stamp(tmp_path / "a.png") is None
    assert read_stamp(tmp_path / "b.png") is None
    assert read_stamp(tmp_path / "nowhere.png") is None
