"""Weights to files and back, in the authors' layout; every wrong file is refused with its remedy."""

from __future__ import annotations

import argparse
import json
import os
import resource
import stat
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import locatvit
from locatvit import LocAtConfig, LocAtError, load_checkpoint, save_checkpoint
from locatvit.backbones.checkpoint import weights_digest

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
KEYS = Path(__file__).parents[1] / "golden" / "keys" / "locatvit_tiny.json"


def small(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    return locatvit.create_model("locatvit_tiny", **{**SMALL, **kwargs})


def plain(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    return locatvit.create_model("vit_tiny_patch16_224", **{**SMALL, **kwargs})


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(ours[key].equal(theirs[key]) for key in ours)


def refused(model: nn.Module, source: str | Path, message: str) -> None:
    """The file is refused in one line, and the model is as it was."""
    before = weights_digest(model)
    with pytest.raises(LocAtError, match=message) as caught:
        load_checkpoint(model, source)
    assert "\n" not in str(caught.value)
    assert weights_digest(model) == before


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.pt"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    model, other = small(), small(seed=1)
    assert not same(model, other)
    path = save_checkpoint(model, tmp_path / "new folder" / name)
    assert load_checkpoint(other, path) is other
    assert same(model, other)
    images = torch.randn(2, 3, 24, 24)
    assert model.eval()(images).equal(other.eval()(images))


def test_folder_stands_for_its_safetensors(tmp_path: Path) -> None:
    model, other = small(), small(seed=1)
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert same(load_checkpoint(other, tmp_path), model)


def test_plain_model_round_trip(tmp_path: Path) -> None:
    model, other = plain(), plain(seed=1)
    save_checkpoint(model, tmp_path / "vit.safetensors")
    assert same(load_checkpoint(other, str(tmp_path / "vit.safetensors")), model)


def test_what_is_written_has_the_authors_keys_and_shapes(tmp_path: Path) -> None:
    published = {name: tuple(shape) for name, shape in json.loads(KEYS.read_text())["state_dict"]}
    path = save_checkpoint(locatvit.create_model("locatvit_tiny"), tmp_path / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in load_file(path).items()} == published


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_the_authors_loads(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    listed = json.loads(KEYS.read_text())["state_dict"]
    published = {name: torch.randn(shape) for name, shape in listed}
    path = tmp_path / f"published{suffix}"
    save_file(published, path) if suffix == ".safetensors" else torch.save(published, path)
    loaded = load_checkpoint(locatvit.create_model("locatvit_tiny"), path).state_dict()
    assert all(loaded[name].equal(value) for name, value in published.items())
    assert set(loaded) == set(published)


def test_what_timms_script_writes_loads(tmp_path: Path) -> None:
    """Its arguments beside the weights, distributed training's prefix, the averaged weights first."""
    averaged, last, other = small(), small(seed=1), small(seed=2)
    torch.save(
        {
            "epoch": 3,
            "arch": "locatvit_tiny",
            "args": argparse.Namespace(lr=1e-3, model="locatvit_tiny"),
            "state_dict": {f"module.{key}": value for key, value in last.state_dict().items()},
            "state_dict_ema": {f"module.{key}": value for key, value in averaged.state_dict().items()},
            "optimizer": {"param_groups": [{"lr": 0.1}]},
        },
        tmp_path / "checkpoint.pth.tar",
    )
    assert same(load_checkpoint(other, tmp_path / "checkpoint.pth.tar"), averaged)


def test_file_says_what_its_weights_mean(tmp_path: Path) -> None:
    path = save_checkpoint(small(), tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        meaning = json.loads(file.metadata()["locatvit"])
    assert meaning["trained_grid"] == [3, 3]
    assert meaning["config"]["variance_scaling"] == "linear"
    assert "backend" not in meaning["config"]  # another machine may run another


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    files = [save_checkpoint(small(), tmp_path / f"{number}.safetensors").read_bytes() for number in range(20)]
    assert len(set(files)) == 1


def test_weights_load_under_another_backend(tmp_path: Path) -> None:
    path = save_checkpoint(small(), tmp_path / "model.safetensors")
    assert same(load_checkpoint(small(1, locat=LocAtConfig(backend="reference")), path), small())


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(LocAtError, match=r"model.onnx ends in '.onnx'; use .safetensors, or .pth"):
        save_checkpoint(small(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = save_checkpoint(small(), tmp_path / "model.safetensors")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(small(), tmp_path / name)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a file may not grow beyond, as on a full disk
    try:
        with pytest.raises(LocAtError, match=rf"cannot write {path}: File too large; the file .* stands"):
            save_checkpoint(small(seed=1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file(tmp_path: Path) -> None:
    refused(small(), tmp_path / "no.pth", r"no checkpoint at \S+no.pth; give a file, a folder with model.safet")
    refused(small(), tmp_path, r"no checkpoint at \S+/model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = save_checkpoint(small(), tmp_path / name)
    size = int(share * path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    refused(small(seed=1), path, rf"{name} \({size} bytes\) is truncated or no file of weights \(.+\); copy it")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_file_of_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a letter, and no weights at all")
    refused(small(), tmp_path / name, r"\(31 bytes\) is truncated or no file of weights")


def test_spoiled_meaning(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "model.safetensors", metadata={"locatvit": "{no json"})
    refused(small(), tmp_path / "model.safetensors", "is truncated or no file of weights")


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_unsafe_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Harmful(f"touch {tmp_path}/pwned")}, tmp_path / "bad.pth")
    refused(small(), tmp_path / "bad.pth", r"bad.pth holds \S+system, which is neither a tensor .* was not loaded")
    assert not (tmp_path / "pwned").exists()


def test_whole_model_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    refused(small(), tmp_path / "whole.pth", r"holds torch\.\S+Linear, .* save the model's state_dict alone")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "a list"),
        ({"epoch": 3, "loss": 0.1}, "a dictionary with epoch, loss"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_pickle_without_weights(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "odd.pth")
    refused(small(), tmp_path / "odd.pth", f"odd.pth holds no weights but {what}; save the model's state_dict")


def test_foreign_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / "other.safetensors")
    refused(
        small(),
        tmp_path / "other.safetensors",
        r"is a foreign checkpoint: none of its 4 keys \(0.bias, 0.weight, 1.bias and 1 more\) is one of "
        r"VisionTransformer's \(cls_token, pos_embed, patch_embed.proj.weight and \d+ more\)",
    )


def test_keys_that_differ(tmp_path: Path) -> None:
    save_checkpoint(small(depth=1), tmp_path / "shallow.safetensors")
    refused(
        small(),
        tmp_path / "shallow.safetensors",
        r"missing blocks.1.norm1.weight, .* unexpected nothing\. Create",
    )
    save_checkpoint(small(depth=3), tmp_path / "deep.pth")
    refused(small(), tmp_path / "deep.pth", r"missing nothing; unexpected blocks.2.norm1.weight")


def test_plain_weights_in_a_model_with_locat(tmp_path: Path) -> None:
    path = save_checkpoint(plain(), tmp_path / "vit.safetensors")
    refused(
        small(),
        path,
        r"was saved without LocAt and the model has it; load it first, then add_locat",
    )
    model = locatvit.add_locat(load_checkpoint(plain(seed=1), path))
    assert model.cls_token.equal(plain().cls_token)


def test_locat_weights_in_a_plain_model(tmp_path: Path) -> None:
    path = save_checkpoint(small(), tmp_path / "model.safetensors")
    refused(plain(), path, "was saved with LocAt and the model has none; call add_locat first")
    assert same(load_checkpoint(locatvit.add_locat(plain(seed=1)), path), small())


def test_prr_alone_changes_no_key_but_the_meaning(tmp_path: Path) -> None:
    with_prr = save_checkpoint(small(gaug=False), tmp_path / "prr.safetensors")
    without = save_checkpoint(plain(), tmp_path / "vit.safetensors")
    refused(plain(), with_prr, "saved with LocAt and the model has none; call add_locat first")
    refused(small(gaug=False), without, "saved without LocAt and the model has it; load it first, then add_locat")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_number_of_classes(tmp_path: Path, suffix: str) -> None:
    path = save_checkpoint(small(num_classes=7), tmp_path / f"seven{suffix}")
    refused(
        small(),
        path,
        r"head.weight is \(7, 24\) in the file and \(5, 24\) in the model \(2 such tensors\); its classes "
        r"are 7 and the model's 5: create the model with num_classes=7, or take a checkpoint with 5",
    )


def test_other_width(tmp_path: Path) -> None:
    path = save_checkpoint(small(embed_dim=48), tmp_path / "wide.safetensors")
    refused(small(), path, r"cls_token is \(1, 1, 48\) in the file .*; create the model with the sizes that")


def test_other_grid(tmp_path: Path) -> None:
    """Without positions all shapes agree, and yet the variances would mean something else."""
    path = save_checkpoint(small(no_pos_emb=True, img_size=32), tmp_path / "grid.safetensors")
    refused(
        small(no_pos_emb=True),
        path,
        r"trained on grid \[4, 4\] and the model is built for \[3, 3\]: its varia",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("variance_scaling", "area"), ("prr", False), ("variance_floor", 0.0), ("distance_clamp", False)],
)
def test_other_settings_of_locat(tmp_path: Path, field: str, value: object) -> None:
    path = save_checkpoint(small(locat=LocAtConfig(**{field: value})), tmp_path / "set.safetensors")
    message = rf"saved with LocAt's {field}={value!r} and the model has .*; create it with LocAtConfig\({field}="
    refused(small(), path, message)


def test_other_layers(tmp_path: Path) -> None:
    path = save_checkpoint(small(locat=LocAtConfig(layers=(1,))), tmp_path / "one.safetensors")
    refused(small(), path, r"was saved with LocAt's layers=\[1\] and the model has None; create it with LocAtConfig\(")
    assert load_checkpoint(small(seed=1, locat=LocAtConfig(layers=(1,))), path)


def in_hub_cache(cache: Path, repository: str, file: Path) -> None:
    """Put a file where the hub client keeps what it has downloaded."""
    commit = "0" * 40
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(file.read_bytes())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_hub_from_its_cache(tmp_path: Path) -> None:
    path = save_checkpoint(small(), tmp_path / "model.safetensors")
    in_hub_cache(tmp_path / "cache", "someone/locatvit_small", path)
    loaded = load_checkpoint(small(1), "hf-hub:someone/locatvit_small", cache_dir=str(tmp_path / "cache"))
    assert same(loaded, small())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("repository", ["someone/else", "not a name"])
def test_hub_without_the_file(tmp_path: Path, repository: str) -> None:
    with pytest.raises(LocAtError, match=rf"cannot fetch model.safetensors of '{repository}' .* check the name"):
        load_checkpoint(small(), f"hf-hub:{repository}", cache_dir=str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_published_weights_by_name(tmp_path: Path) -> None:
    """``pretrained=True`` fetches what the authors published under the name."""
    torch.manual_seed(3)
    published = {name: torch.randn(shape) for name, shape in json.loads(KEYS.read_text())["state_dict"]}
    save_file(published, tmp_path / "file.safetensors")
    in_hub_cache(tmp_path / "cache", "sinahmr/locatvit_tiny", tmp_path / "file.safetensors")
    model = timm.create_model("locatvit_tiny", pretrained=True, cache_dir=str(tmp_path / "cache"))
    assert all(value.equal(published[name]) for name, value in model.state_dict().items())


def test_digest_tells_weights_apart() -> None:
    assert weights_digest(small()) == weights_digest(small())
    assert weights_digest(small()) != weights_digest(small(seed=1))
    model = small()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert weights_digest(model) != weights_digest(small())
    assert weights_digest(small().bfloat16()) != weights_digest(small())


SHARED = 4  # weights and biases of Jumbo's MLP for its wide token


def jumbo(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    return locatvit.add_locat(plain_jumbo(seed, **kwargs))


def plain_jumbo(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    model = locatvit.create_model("jumbo_tiny", **{**SMALL, **kwargs})
    nn.init.normal_(model.head.weight)
    return model


def names_in(path: Path) -> list[str]:
    return list(load_file(path)) if path.suffix == ".safetensors" else list(torch.load(path)["state_dict"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_shared_tensor_is_written_once_and_loads_under_all_names(tmp_path: Path, suffix: str) -> None:
    model, other = jumbo(), jumbo(seed=1)
    assert not same(model, other)
    path = save_checkpoint(model, tmp_path / f"jumbo{suffix}")
    bytes_of_all = sum(parameter.numel() for parameter in model.parameters()) * 4
    assert bytes_of_all < path.stat().st_size < bytes_of_all + 60_000  # of each name an entry, too
    assert same(load_checkpoint(other, path), model)
    assert other.blocks[1].jumbo_mlp is other.jumbo_mlp
    images = torch.randn(2, 3, 24, 24)
    assert model.eval()(images).equal(other.eval()(images))


def test_a_shared_tensor_has_its_owners_name_in_safetensors_and_every_name_for_timm(tmp_path: Path) -> None:
    model = jumbo()
    every = list(model.state_dict())
    once = names_in(save_checkpoint(model, tmp_path / "jumbo.safetensors"))
    assert set(every) - set(once) == {name for name in every if ".jumbo_mlp." in name}
    assert len(every) - len(once) == 2 * SHARED
    assert names_in(save_checkpoint(model, tmp_path / "jumbo.pth")) == every


def test_sharing_by_parameter_alone(tmp_path: Path) -> None:
    """Tied like a language model's embedding: one parameter in two modules; and no tie by equal values."""

    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        nn.init.zeros_(model[0].bias)
        nn.init.zeros_(model[1].bias)
        return model

    path = save_checkpoint(tied(0), tmp_path / "tied.safetensors")
    assert set(names_in(path)) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    assert same(load_checkpoint(tied(1), path), tied(0))
    untied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    refused(untied, path, "missing 2.weight; unexpected nothing")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_with_every_name_apart_loads(tmp_path: Path, suffix: str) -> None:
    """The authors' programs write the shared MLP out for every block."""
    model, path = jumbo(), tmp_path / f"all{suffix}"
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(load_checkpoint(jumbo(seed=1), path), model)
    for name in [name for name in state if name.startswith(("jumbo_mlp.", "blocks.0.jumbo_mlp."))]:
        del state[name]  # any one name will do
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(load_checkpoint(jumbo(seed=1), path), model)


def test_copies_of_a_shared_tensor_that_differ(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in jumbo().state_dict().items()}
    state["blocks.1.jumbo_mlp.fc1.bias"][3] += 1
    save_file(state, tmp_path / "untied.safetensors")
    refused(
        jumbo(seed=1),
        tmp_path / "untied.safetensors",
        "jumbo_mlp.fc1.bias and blocks.1.jumbo_mlp.fc1.bias are one tensor in the model and differ in the file",
    )


def test_names_stay_strict_where_tensors_are_shared(tmp_path: Path) -> None:
    path = save_checkpoint(jumbo(), tmp_path / "jumbo.safetensors")
    state = load_file(path)
    for name in [name for name in state if name.startswith("jumbo_mlp.fc1.")]:
        del state[name]
    save_file(state, tmp_path / "none.safetensors")
    refused(jumbo(seed=1), tmp_path / "none.safetensors", r"missing \S*jumbo_mlp.fc1.weight, .* and 3 more; unexpected")
    save_checkpoint(jumbo(depth=3), tmp_path / "deep.safetensors")
    refused(jumbo(), tmp_path / "deep.safetensors", "missing nothing; unexpected blocks.2.")
    save_checkpoint(jumbo(embed_dim=48), tmp_path / "wide.safetensors")
    refused(jumbo(), tmp_path / "wide.safetensors", r"cls_token is \(1, 6, 48\) in the file")


def test_jumbo_with_locat_and_without(tmp_path: Path) -> None:
    """LocAt brings a norm of its own there."""
    bare = save_checkpoint(plain_jumbo(), tmp_path / "plain.safetensors")
    refused(jumbo(), bare, "was saved without LocAt and the model has it; load it first, then add_locat")
    full = save_checkpoint(jumbo(), tmp_path / "locat.safetensors")
    refused(plain_jumbo(), full, "was saved with LocAt and the model has none; call add_locat first")
    model = locatvit.add_locat(load_checkpoint(plain_jumbo(seed=1), bare))
    assert model.jumbo_mlp.fc1.weight.equal(plain_jumbo().jumbo_mlp.fc1.weight)


def test_gate_of_an_identity_start_is_locats(tmp_path: Path) -> None:
    path = save_checkpoint(plain(), tmp_path / "vit.safetensors")
    refused(
        small(locat=LocAtConfig(start="identity")), path, "was saved without LocAt and the model has it; load it first"
    )


def test_digest_of_shared_tensors() -> None:
    assert weights_digest(jumbo()) == weights_digest(jumbo())
    model = jumbo()
    with torch.no_grad():
        model.blocks[1].jumbo_mlp.fc2.bias[0] += 1e-6
    assert weights_digest(model) != weights_digest(jumbo())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"alpha": "none"}, "alpha='none' and the model has 'learned'"),
        ({"variance": 4.0}, "variance=4.0 and the model has 'query'"),
        ({"kernel": "laplace"}, "kernel='laplace' and the model has 'gaussian'"),
        ({"gaug": False}, "gaug=False and the model has True"),
        ({"prr": False, "pooling": "avg"}, "prr=False and the model has True"),
    ],
)
def test_another_variant_is_named_as_such(tmp_path, saved, message):
    path = locatvit.save_checkpoint(small(locat=LocAtConfig(**saved)), tmp_path / "model.safetensors")
    refused(small(), path, f"was saved with LocAt's {message}; create it with LocAtConfig")


def test_a_file_without_later_fields_has_their_defaults(tmp_path):
    path = locatvit.save_checkpoint(small(locat=LocAtConfig(prr=False)), tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        meaning = json.loads(file.metadata()["locatvit"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    for name in ("kernel", "variance", "alpha", "pooling", "position_embedding"):
        del meaning["config"][name]
    save_file(state, path, metadata={"locatvit": json.dumps(meaning)})
    locatvit.load_checkpoint(small(locat=LocAtConfig(prr=False)), path)
    other = small(locat=LocAtConfig(prr=False, pooling="avg"))
    refused(other, path, "was saved with LocAt's pooling='host' and the model has 'avg'")
