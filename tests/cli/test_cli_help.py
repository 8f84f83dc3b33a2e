"""Help: complete, and there before torch could be loaded."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from locatvit import __version__
from locatvit.cli.main import VERBS, main

OPTION = re.compile(r"  (?:-h, )?(--[\w.]+|\w+)( [^ ].*?)?(?:  +(?P<help>\S.*))?")


def help_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main([*arguments, "--help"])
    except SystemExit as done:  # argparse's way to end after help
        code = done.code
    assert code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def options_in(text: str) -> dict[str, str]:
    """Each option with its help, which may begin on the line after."""
    found: dict[str, str] = {}
    name = None
    for line in text.partition("\nexamples:")[0].splitlines():
        match = OPTION.fullmatch(line)
        if match and line.startswith("  -"):
            name = match[1]
            found[name] = match["help"] or ""
        elif name is not None and line.startswith("    "):
            found[name] += f" {line.strip()}"
        else:
            name = None
    return found


def test_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    for verb, purpose in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(purpose)}$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110


def test_without_a_verb_help_is_shown_and_it_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: locatvit VERB" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"locatvit {__version__}\n"


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"data"}))  # its two commands are in test_cli_data.py
def test_every_option_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(verb, capsys=capsys)
    assert text.startswith(f"usage: locatvit {verb} [options]\n")
    assert "\nexamples:\n" in text
    options = options_in(text)
    assert "--config" in options
    for option, explained in options.items():
        words = re.sub(r"\(type: .*|\(default: .*|\(required.*", "", explained)
        assert len(words) > 8, f"{verb} {option} has no help"
    assert "<class '" not in " ".join(text.split()), "that is Python's way to write a type"


def test_the_options_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    options = options_in(help_of("train", capsys=capsys))
    assert {
        "--run_dir",
        "--model.name",
        "--data.root",
        "--augment.image_size",
        "--training.lr",
        "--resume",
    } <= set(options)
    assert "default: 0.001" in options["--training.lr"]


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from locatvit.cli.main import main\n"
        "try:\n"
        "    code = main(sys.argv[1:])\n"
        "except SystemExit as done:\n"
        "    code = done.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'accelerate', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: locatvit")
