"""Names of the files that photos become, and settings that are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from locatvit.errors import LocAtError
from locatvit.recipes.predict_config import PredictConfig
from locatvit.recipes.predict_jobs import output_names


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),
        (["sub/a.jpg", "a.jpg"], ["sub/a", "a"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),  # one file on some file systems
        (["a.b.jpg", "a.jpg"], ["a.b", "a"]),
        (["a.jpg", "a.jpg"], ["a.jpg", "a.jpg-2"]),  # of two folders
        (["a.jpg", "a.jpg", "a.jpg.png"], ["a.jpg-2", "a.jpg-3", "a.jpg"]),
        (["a.jpg", "a.png", "a.jpg.webp", "a.jpg.bmp"], ["a.jpg", "a.png", "a.jpg.webp", "a.jpg.bmp"]),
    ],
)
def test_every_photo_has_files_of_its_own(names: list[str], stems: list[str]) -> None:
    assert output_names(names) == stems
    assert len({stem.casefold() for stem in stems}) == len(names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": ()}, "images is empty; give photos, or folders of photos"),
        ({"overlay": "gif"}, "overlay is 'gif'; it must be one of jpg, png, none"),
        ({"opacity": 2.0}, r"opacity is 2.0; it must be in \[0, 1\]"),
        ({"max_bad_images": -1}, "max_bad_images is -1; it must be a whole number >= 0"),
        ({"max_megapixels": 0.0}, "max_megapixels is 0.0; it must be above 0 and at most 89"),
        ({"max_megapixels": 500.0}, "max_megapixels is 500.0; it must be above 0 and at most 89"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        PredictConfig(**{"run": Path("run"), "images": (Path("a.jpg"),), **settings})


def test_a_list_of_a_yaml_file_will_do() -> None:
    assert PredictConfig(Path("run"), ["a", "b"]).images == (Path("a"), Path("b"))  # type: ignore[arg-type]
