"""The page: one file, nothing from elsewhere, every text escaped; and how a result was made."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import BOTH, ENVIRONMENT, classification, segmentation

from locatvit.errors import LocAtError
from locatvit.report.figures import per_class_bars, to_png_bytes
from locatvit.report.html import render, write_report
from locatvit.report.sections import Picture, Section, portable, provenance_section
from locatvit.report.tables import Table

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes and the text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def picture() -> Picture:
    return Picture(to_png_bytes(per_class_bars({"ViT": {"a": 0.5}})), alt="One bar", caption="A <bar>")


def page(*sections: Section, title: str = "T", summary: str = "S") -> Page:
    return Page(render(title=title, summary=summary, sections=sections))


def test_the_page_asks_for_nothing_from_elsewhere(picture: Picture) -> None:
    text = render(title="T", summary="S", sections=[Section("One", pictures=(picture,), code="locatvit train")])
    found = Page(text)
    assert not found.all("script")
    assert not found.all("link")
    for _, attributes in found.elements:
        for name, value in attributes.items():
            assert name not in ("src", "href", "srcset") or str(value).startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import|https?://", text)
    assert any("default-src 'none'" in str(meta.get("content")) for meta in found.all("meta"))


def test_every_text_is_escaped(picture: Picture) -> None:
    evil = '"><script>alert(1)</script>&'
    section = Section(
        evil,
        paragraphs=(evil,),
        tables=(Table((evil,), ((evil,),), caption=evil),),
        pictures=(Picture(picture.png, alt=evil, caption=evil),),
        facts=((evil, evil),),
        code=evil,
        details=((evil, evil),),
    )
    found = page(section, title=evil, summary=evil)
    assert not found.all("script")
    # title twice; summary; heading; paragraph; table: column, cell, caption; picture: caption; term, value;
    # code; details: summary, text
    assert found.text.count(evil) == 14
    assert found.all("img")[0]["alt"] == evil


def test_pictures_have_alt_text_and_their_size(picture: Picture) -> None:
    (image,) = page(Section("One", pictures=(picture,))).all("img")
    height, width = picture.size
    assert (image["alt"], image["width"], image["height"]) == ("One bar", str(width), str(height))
    assert width == 760


def test_contents_for_more_than_three_sections() -> None:
    three = [Section(f"Part {i}") for i in range(3)]
    assert not page(*three).all("nav")
    found = page(*three, Section("Part 3"))
    targets = [str(link["href"])[1:] for link in found.all("a")]
    assert targets == [section["id"] for section in found.all("section")]


def test_numbers_are_set_flush_right() -> None:
    found = page(Section("One", tables=(Table(("model", "data", "n"), (("ViT", "scenes", "1"),), text_columns=2),)))
    assert [cell.get("class") for cell in found.all("td")] == [None, "number"]
    assert [cell.get("class") for cell in found.all("th")] == [None, None, "number", None]


def test_write_report_replaces_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    for title in ("old", "new"):
        assert write_report(path, title=title, summary="", sections=[]) == path
    assert "<title>new</title>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.mkdir()
    with pytest.raises(LocAtError, match=r"cannot write .*report\.html"):
        write_report(path, title="", summary="", sections=[])
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_is_a_png_with_words() -> None:
    with pytest.raises(LocAtError, match="must be a PNG file"):
        Picture(b"GIF89a", alt="x")
    with pytest.raises(LocAtError, match="alt text is empty"):
        Picture(b"\x89PNG\r\n\x1a\n", alt=" ")


def test_provenance_tells_versions_and_settings_but_no_place() -> None:
    results = [classification(0.1), classification(0.2, seed=1), segmentation(0.3, locat=BOTH, lr=5e-4)]
    section = provenance_section(results, command="locatvit train --output=/home/someone/runs/x --data '/mnt/a b/c'")
    facts = dict(section.facts)
    assert facts["Date"] == ENVIRONMENT["date"]
    assert facts["Commit"] == ENVIRONMENT["commit"]
    assert facts["Device"] == "cpu, 2 threads"
    assert facts["Versions"] == "locatvit 0.1.0, torch 2.15.0"
    assert facts["Time"] == "3 min 3 s for 3 runs"
    details = dict(section.details)
    assert (
        "epochs: 8\noutput: s0 | s1\nseed: 0 | 1" in details["Configuration of ViT, classification on scenes (2 runs)"]
    )
    assert "lr: 0.0005" in details["Configuration of ViT, segmentation on scenes (1 run)"]
    everything = repr(section) + section.to_markdown() + render(title="", summary="", sections=[section])
    assert not re.search(r"/home|someone|/mnt", everything)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/some one/runs/vit", "vit"),
        ("C:\\Users\\someone\\runs\\vit", "vit"),
        ("~/runs/vit", "vit"),
        ("/", "..."),
        ("runs/vit", "runs/vit"),
        ("hfds/timm/mini-imagenet", "hfds/timm/mini-imagenet"),
        ("https://example.org/a", "https://example.org/a"),
        (
            "locatvit train --data /data/cifar100 --output=/tmp/x/y --lr 1/2",
            "locatvit train --data cifar100 --output=y --lr 1/2",
        ),
        ("cannot read /data/a.png, line 3", "cannot read a.png, line 3"),
        ("cp 'file:///home/me/a.txt' \"~/b c\"", "cp 'a.txt' \"b c\""),
    ],
)
def test_portable(text: str, told: str) -> None:
    assert portable(text) == told


def test_markdown_of_a_section(picture: Picture) -> None:
    section = Section(
        "Next *steps*",
        ("Do this:",),
        pictures=(picture,),
        facts=(("Date", "today"),),
        code="a ``` b",
        details=(("<More>", "x: 1"),),
    )
    assert section.to_markdown() == (
        "## Next \\*steps\\*\n\nDo this:\n\n*A \\<bar\\>*\n\n- **Date:** today\n\n````\na ``` b\n````\n\n"
        "<details><summary>&lt;More&gt;</summary>\n\n```\nx: 1\n```\n\n</details>\n"
    )
