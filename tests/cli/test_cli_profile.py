"""``locatvit profile``: the tables, the file, and wrong words."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_cli import MODEL, Command

QUICK = ("--seconds", "0.01", "--batch_size", "2")


def test_one_model_plain_and_with_locat(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    answer = command("profile", *MODEL, *QUICK, "--image_size", "[32, 40]", "--output", file)
    assert answer.code == 0
    assert answer.err == ""
    numbers = json.loads(file.read_text())
    plain, locat = numbers["plain"]["cost"], numbers["locat"]["cost"]
    # 2 blocks, heads 12 wide: two variances and alpha
    assert locat["parameters"] - plain["parameters"] == 2 * 3 * (12 + 1)
    assert re.search(rf"parameters +│ +{plain['parameters']:,} │ +{locat['parameters']:,} │ +\+78 ", answer.out)
    speed = numbers["locat"]["speeds"]["forward"]
    assert f"{speed['images_per_second']['median']:#.4g}" in answer.out
    assert f"middle half of {speed['images_per_second']['count']} turns" in answer.out
    assert numbers["config"]["batch_size"] == 2
    assert numbers["config"]["image_size"] == [32, 40]
    assert set(numbers["environment"]) == {"versions", "commit", "device", "date"}
    assert "locatvit_tiny, 32 x 40 pixels, 2 images at a time, float32" in " ".join(answer.out.split())
    assert f"written: {file}" in answer.out


def test_table_1_of_the_paper(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "paper.json"
    answer = command("profile", "--paper", "--output", file)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert sum(" + LocAt" in line for line in lines) == 10
    assert any(re.match(r"│ Swin-Tiny +│ +28 │ +28\.288 │ \+1\.0 │ +4\.50 │", line) for line in lines)
    assert "20 of 20 rows have the paper's parameters to the million, and its FLOPs to 1 %." in answer.out
    assert max(len(line) for line in lines if line[:1] in "┏┃┡│└") <= 80, "a terminal may be no wider"
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 20
    assert rows[0]["cost"]["parameters"] == 5_717_416


def test_backends_of_a_device_that_is_not_here(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "backends.json"
    answer = command("profile", *MODEL, "--backends", "--device", "cuda", "--precision", "bf16", "--output", file)
    assert (answer.code, answer.err) == (0, "")
    assert "2 attentions, 4 x 4 + 1 tokens, heads of 12" in answer.out
    assert re.search(r"triton +│ yes: this one is taken", answer.out)
    assert re.search(r"flex +│ no: FlexAttention takes no heads narrower than 16", answer.out)
    assert "128 images at a time" in answer.out, "the usual batch of a GPU"
    (attentions,) = json.loads(file.read_text())["attentions"]
    assert attentions["request"]["device_type"] == "cuda"
    assert attentions["request"]["dtype"] == "bfloat16"
    assert [each["backend"] for each in attentions["answers"] if each["chosen"]] == ["triton"]


def test_backends_of_this_device(command: Command) -> None:
    answer = command("profile", *MODEL, "--backends", "--device", "cpu", "--backward", "true")
    assert re.search(r"triton +│ no: it runs on CUDA devices, and this is cpu", answer.out)
    assert re.search(r"sdpa +│ yes: this one is taken", answer.out)
    assert "forward + backward, on cpu" in " ".join(answer.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--paper --backends", "--paper counts models and --backends asks one for its backends; leave one of them out"),
        ("--device cuda", "--device is 'cuda' but costs are measured on the present device; leave it out, or"),
        ("--backends --device gpu", "device is 'gpu'; it must be one that torch knows, such as cpu or cuda"),
        ("--backends --seconds 3", "--seconds is 3 but --backends measures nothing; leave one of them out"),
        ("--backends --device cpu --precision fp16", "precision is 'fp16'; it needs a GPU, and this is a CPU; use"),
        ("--backends --model.locat.backend spda", "backend 'spda' is unknown; did you mean sdpa"),
        ("--backends --model.name resnet18", "add_locat does not know the model class ResNet; it knows"),
        ("--paper --model.name locatvit_base", "--paper counts the models .*, and --model.name is given too; leave"),
        ("--paper --batch_size 4", "--paper counts .*, and --batch_size is given too"),
        ("--paper --model.locat.prr false", "--paper counts .*, and --model.locat is given too"),
        ("--model.name locatvit_tinny", "model 'locatvit_tinny' is unknown; did you mean locatvit_tiny"),
        ("--batch_size 0", "batch_size is 0; it must be a whole number >= 1, or null"),
        ("--batch_size many", "--batch_size is 'many'; it must be a whole number or null"),
        ("--image_size big", "--image_size is 'big'; it must be a whole number or a list of 2 whole numbers"),
        ("--precision fp8", "--precision is 'fp8'; it must be one of no, bf16, fp16"),
        ("--model.locat.start x", "--model.locat.start is 'x'; it must be one of paper, identity"),
        ("--name locatvit_tiny", "--name is no option; did you mean --model.name?"),
    ],
)  # fmt: skip
def test_wrong_words(arguments: str, message: str, command: Command, tmp_path: Path) -> None:
    assert re.search(message, command.refused("profile", *shlex.split(arguments), "--output", tmp_path / "x.json"))
    assert not list(tmp_path.iterdir())
