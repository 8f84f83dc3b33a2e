"""Costs of models and the paper's Table 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from locatvit import LocAtConfig, LocAtError
from locatvit.analysis.cost import Cost
from locatvit.analysis.timing import Spread
from locatvit.recipes.paper_costs import PaperCost, agreement, paper_costs, paper_costs_table
from locatvit.recipes.profile import ModelProfile, Profile, Speed, profile
from locatvit.recipes.profile_config import ProfileConfig, ProfileModel
from locatvit.recipes.profile_tables import profile_table

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}

# Parameters at 1000 classes: plain, and what LocAt adds (details of the authors' code, section 9). Two rows are not
# given there: RegViT-Base has 4 registers and their positions more than ViT-Base; RoPEViT-Base has no positions,
# but two layer scales a block, and 2 x 32 frequencies a head and block.
PARAMETERS = {
    ("vit", "tiny"): (5_717_416, 2_340),
    ("vit", "base"): (86_567_656, 2_340),
    ("swin", "tiny"): (28_288_354, 1_188),
    ("swin", "base"): (87_768_224, 2_376),
    ("regvit", "tiny"): (5_718_952, 2_340),
    ("regvit", "base"): (86_567_656 + 2 * 4 * 768, 2_340),
    ("ropevit", "tiny"): (5_686_504, 2_340),
    ("ropevit", "base"): (86_567_656 - 197 * 768 + 12 * 2 * 768 + 12 * 12 * 2 * 32, 2_340),
    ("jumbo", "tiny"): (17_348_776, 2_724),
    ("jumbo", "base"): (260_495_080, 3_876),
}
ROWS = [(method, size, locat) for method, size in PARAMETERS for locat in (False, True)]


@pytest.fixture(scope="module")
def costs() -> dict[tuple[str, str, bool], PaperCost]:
    return {(cost.method, cost.size, cost.has_locat): cost for cost in paper_costs()}


def test_table_1_has_20_rows(costs: dict[tuple[str, str, bool], PaperCost]) -> None:
    assert set(costs) == set(ROWS)
    assert len(costs) == 20


@pytest.mark.parametrize(("method", "size", "has_locat"), ROWS)
def test_row_of_table_1(method: str, size: str, has_locat: bool, costs: dict[tuple[str, str, bool], PaperCost]) -> None:
    """Parameters exactly; both figures as the paper prints them, cut off where it cuts off."""
    row = costs[method, size, has_locat]
    plain, added = PARAMETERS[method, size]
    assert row.cost.parameters == plain + added * has_locat
    assert agreement(row.our_params_m, row.params_m, 0) in ("rounded", "cut off")
    assert agreement(row.our_gflops, row.gflops, 2) in ("rounded", "cut off")
    assert row.our_gflops == pytest.approx(row.gflops, rel=0.01)
    assert "!" not in row.remarks


@pytest.mark.parametrize("method", ["vit", "regvit", "ropevit", "jumbo"])
def test_what_runs_is_less_than_what_the_paper_counts(
    method: str, costs: dict[tuple[str, str, bool], PaperCost]
) -> None:
    plain, locat = (costs[method, "base", has_locat].cost for has_locat in (False, True))
    assert plain.multiply_adds == plain.paper_multiply_adds
    assert locat.multiply_adds < locat.paper_multiply_adds
    assert locat.multiply_adds < 1.001 * plain.multiply_adds


@pytest.mark.parametrize(
    ("ours", "printed", "decimals", "told"),
    [
        (86.4, 86, 0, "rounded"),
        (86.57, 86, 0, "cut off"),
        (86.57, 87, 0, "rounded"),
        (87.01, 86, 0, "differs"),
        (85.4, 86, 0, "differs"),
        (17.6449, 17.64, 2, "rounded"),
        (17.6451, 17.64, 2, "cut off"),
        (17.6351, 17.64, 2, "rounded"),
        (17.6501, 17.64, 2, "differs"),
        (0.29, 0.29, 2, "rounded"),
    ],
)
def test_agreement(ours: float, printed: float, decimals: int, told: str) -> None:
    assert agreement(ours, printed, decimals) == told


@pytest.mark.parametrize(
    ("parameters", "flops", "remarks"),
    [
        (86_000_000, 17_580_000_000, ""),
        (86_600_000, 17_580_000_000, "a"),
        (86_000_000, 17_586_000_000, "b"),
        (86_600_000, 17_586_000_000, "ab"),
        (86_000_000, 17_600_000_000, "c"),
        (86_000_000, 17_800_000_000, "!"),
        (84_000_000, 17_580_000_000, "!"),
    ],
)
def test_what_is_off_is_marked_and_explained(parameters: int, flops: int, remarks: str) -> None:
    row = PaperCost("vit", "base", True, Cost(parameters, flops - 60_000_000, flops), 86, 17.58)
    assert row.remarks == remarks
    table, notes = paper_costs_table([row])
    assert table.rows[0][0] == f"  + LocAt {remarks}".rstrip()
    assert [note[0] for note in notes if note[1:3] == "  "] == list(remarks)
    assert notes[-1].startswith(f"{int(remarks != '!')} of 1 rows have the paper's")
    assert (table.rows[0][2], table.rows[0][-1]) == (f"{parameters / 1e6:.3f}", f"{(flops - 6e7) / 1e9:.3f}")


def measured(median: float, peak: int | None) -> dict[str, Speed]:
    return {"forward": Speed(Spread(median, median - 1, median + 1, 9), peak)}


def test_profile_as_a_table() -> None:
    config = ProfileConfig(ProfileModel("locatvit_tiny"), image_size=(224, 320), batch_size=1)
    plain = ModelProfile(Cost(1_000, 2_000_000_000, 2_000_000_000), measured(40, 100 << 20))
    locat = ModelProfile(Cost(1_195, 2_100_000_000, 2_200_000_000), measured(38, 105 << 20))
    ratios = {"forward": Spread(0.95, 0.94, 0.96, 9)}
    whole = Profile(config, plain, locat, None, ratios, {"device": "a machine"})
    table, notes = profile_table(whole)
    assert table.caption == "locatvit_tiny, 224 x 320 pixels, 1 image at a time, float32, a machine."
    assert table.columns == ("", "plain", "LocAt", "LocAt / plain")
    assert table.rows == (
        ("parameters", "1,000", "1,195", "+195"),
        ("multiply-adds, G", "2.000", "2.100", "1.050"),
        ("  with all of PRR", "2.000", "2.200", "1.100"),
        ("forward, images/s", "40.00", "38.00", "0.950"),
        ("  middle half of 9 turns", "39.00 - 41.00", "37.00 - 39.00", "0.940 - 0.960"),
        ("  peak memory, MiB", "100", "105", "1.050"),
    )
    assert len(notes) == 2
    alone = replace(whole, locat=None, why_no_locat="it is no ViT", speed_ratio={})
    alone = replace(alone, plain=replace(plain, speeds=measured(40, None)))
    table, notes = profile_table(alone)
    assert table.columns == ("", "plain")
    assert table.rows[-1] == ("  peak memory, MiB", "-")
    assert notes[1:] == ["Peak memory: this device does not tell it.", "No LocAt: it is no ViT."]


def test_everything_is_measured() -> None:
    """Both steps of a model that add_locat refuses, so that there is one model to measure."""
    model = ProfileModel("resnet18", {"num_classes": 3})
    found = profile(ProfileConfig(model, image_size=40, batch_size=3, backward=True, seconds=0.01))
    assert found.locat is None
    assert "add_locat does not know the model class ResNet" in str(found.why_no_locat)
    assert list(found.plain.speeds) == ["forward", "forward + backward"]
    forward, training = found.plain.speeds.values()
    assert forward.images_per_second.count >= 5
    assert forward.images_per_second.low > 0
    assert training.images_per_second.low > 0
    # of training, gradients as large as the weights are a part
    assert training.peak_bytes is None or training.peak_bytes > 2 * 4 * found.plain.cost.parameters
    assert found.speed_ratio == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProfileConfig(ProfileModel("vit_tinny")), "model 'vit_tinny' is unknown; did you mean "),
        (ProfileConfig(ProfileModel("locatvit_tiny", {"gaug": False})), "model.kwargs has gaug, which the plain model"),
        (ProfileConfig(ProfileModel("locatvit_tiny", {"depht": 3})), "'locatvit_tiny' cannot be created with .*depht"),
        (
            ProfileConfig(ProfileModel("vit_tiny_patch16_224", SMALL, LocAtConfig(layers=(7,)))),
            r"layers is \(7,\); the model's blocks are numbered 0 to 0",
        ),
        (
            ProfileConfig(ProfileModel("cait_xxs24_224", {"depth": 1}), image_size=(240, 224)),
            r"image_size is \(240, 224\) but cait_xxs24_224 is made for \(224, 224\), for good; make one",
        ),
        (ProfileConfig(ProfileModel("locatvit_tiny", SMALL), precision="fp8"), "precision is 'fp8'; it must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_profiled(config: ProfileConfig, message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        profile(config)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU is here, the test is of a CPU's memory")
def test_too_large_a_batch_is_told() -> None:
    config = ProfileConfig(ProfileModel("locatvit_tiny", SMALL), batch_size=10**12)
    with pytest.raises(LocAtError, match="batch_size is 1000000000000; so many images of 24 x 24 pixels need more mem"):
        profile(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number >= 1"),
        ({"image_size": 0}, "image_size is 0; it must be a whole number of pixels >= 1, or two"),
        ({"image_size": (224, -1)}, r"image_size is \(224, -1\); it must be"),
        ({"image_size": (1, 2, 3)}, r"image_size is \(1, 2, 3\); it must be"),
        ({"seconds": 0.0}, "seconds is 0.0; it must be a number > 0"),
        ({"seconds": float("inf")}, "seconds is inf; it must be a number > 0"),
    ],
)
def test_values_outside_their_range(values: dict, message: str) -> None:
    with pytest.raises(LocAtError, match=message):
        ProfileConfig(**values)


def test_a_size_from_a_file_is_a_list() -> None:
    assert ProfileConfig(image_size=[224, 320]).image_size == (224, 320)  # type: ignore[arg-type]
