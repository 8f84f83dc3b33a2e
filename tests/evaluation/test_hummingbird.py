"""Dense retrieval: memory, vote and score, by hand and through the whole pipeline."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.evaluation.hummingbird import evaluate_hummingbird, make_metrics, vote, vote_map
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.evaluation.matching import MatchedMetrics, hungarian
from locatvit.evaluation.metrics import SegmentationMetrics
from locatvit.evaluation.nearest import Neighbours
from locatvit.evaluation.patch_memory import Labels, Memory, label_shares, remember, sampled, unit
from locatvit.evaluation.retrieval import make_search
from locatvit.features import Features

IGNORE = 255
PLAIN = HummingbirdConfig(neighbours=5).resolved("folder", -1)
AUTHORS = HummingbirdConfig(protocol="hummingbird_locat", neighbours=5).resolved("voc2012", -1)


def test_a_vote_by_hand() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    neighbours = Neighbours(torch.tensor([[0.9, 0.9 - 0.02 * math.log(3)]]), torch.tensor([[0, 1]]))
    # the second is ln 3 temperatures behind the first: weights 3/4 and 1/4
    expected = torch.tensor([[0.75, 0.125, 0.125]])
    torch.testing.assert_close(vote(neighbours, labels, 0.02), expected, rtol=1e-5, atol=0)
    equal = Neighbours(torch.tensor([[0.5, 0.5, 0.5]] * 2500), torch.tensor([[0, 1, 2]] * 2500))
    torch.testing.assert_close(vote(equal, labels, 7.0), labels.mean(dim=0).repeat(2500, 1))


def test_shares_of_labels_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, -1], [-1, -1, 1, -1]]])
    shares, labelled = label_shares(labels, (3, 2), 3)
    expected = [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
    torch.testing.assert_close(shares, torch.tensor([expected]))
    assert labelled.tolist() == [[True, True, True, True, False, True]]
    two, _ = label_shares(torch.cat([labels, labels.roll(2, dims=2)]), (3, 2), 3)
    torch.testing.assert_close(two[0], shares[0])
    torch.testing.assert_close(two[1], shares[0, [1, 0, 3, 2, 5, 4]])
    with pytest.raises(LocAtError, match="mask has 3 x 4 pixels and the backbone 2 x 2 patches; image_size must"):
        label_shares(labels, (2, 2), 3)


@pytest.mark.parametrize(
    ("unlabelled", "remembered", "truth", "names", "ignored"),
    [
        ("left_out", [0, 1, -1], [0, 1, IGNORE], ("a", "b"), IGNORE),
        ("first_class", [0, 1, 0], [0, 1, IGNORE], ("a", "b"), IGNORE),
        ("extra_class", [1, 2, 0], [1, 2, 0], ("(unlabelled)", "a", "b"), 0),
    ],
)
def test_what_becomes_of_pixels_without_a_label(unlabelled, remembered, truth, names, ignored) -> None:
    labels = Labels(("a", "b"), IGNORE, unlabelled)
    mask = torch.tensor([0, 1, IGNORE])
    assert labels.remembered(mask).tolist() == remembered
    assert labels.truth(mask).tolist() == truth
    assert (labels.names, labels.ignored_truth) == (names, ignored)


def test_what_is_remembered() -> None:
    patches = torch.randn(2, 4, 5)
    mask = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, -1], [1, 0, -1, -1], [1, 0, -1, -1]]]).repeat(2, 1, 1)
    found = remember(Features(None, patches[:, :0], patches, (2, 2)), mask, 2)
    kept = patches[:, :3].flatten(0, 1)
    torch.testing.assert_close(found.features, kept / kept.norm(dim=1, keepdim=True))
    assert found.labels.tolist() == [[1, 0], [0, 1], [0.5, 0.5]] * 2
    assert unit(torch.zeros(2, 3)).tolist() == [[0, 0, 0]] * 2  # nothing is divided by zero


def test_patches_of_rare_classes_are_drawn_rather() -> None:
    shares = F.one_hot(torch.tensor([[0] * 90 + [1] * 9 + [2]]), 3).double().repeat(400, 1, 1)
    labelled = torch.ones(400, 100, dtype=torch.bool)
    labelled[:, :10] = False
    generator = torch.Generator().manual_seed(0)
    kept = sampled(shares, labelled, 5, "uniform", generator)
    assert (kept.sum(dim=1) == 5).all()
    assert not kept[:, :10].any()
    assert kept[:, 99].float().mean() == pytest.approx(5 / 90, abs=0.04)
    rare = sampled(shares, labelled, 5, "rare_classes", generator)
    assert (rare.sum(dim=1) == 5).all()
    # 80 of draws from 0 to 80 and 9 from 0 to 9; the last one draws from 0 to 1 and is nearly always among five
    assert rare[:, 99].float().mean() > 0.95
    assert rare[:, 90:99].float().sum(dim=1).mean() > 1.5
    few = sampled(shares, labelled, 95, "uniform", generator)
    assert torch.equal(few, labelled)
    again = sampled(shares, labelled, 5, "uniform", torch.Generator().manual_seed(0))
    assert torch.equal(again, kept)


def test_a_map_is_the_argmax_of_the_resized_votes() -> None:
    votes = torch.rand(6, 40)
    resized = F.interpolate(votes.T.unflatten(1, (2, 3))[None], size=(11, 17), mode="bilinear", align_corners=False)
    assert torch.equal(vote_map(votes, (2, 3), (11, 17)), resized.argmax(dim=1)[0])


def reads_labels(num_classes: int):
    """A backbone that reads each pixel's label off the image: one patch a pixel, with a little noise."""

    def features(images: Tensor) -> Features:
        tokens = F.one_hot(images[:, 0].long(), num_classes).flatten(1, 2).float()
        tokens = tokens + 0.05 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
        return Features(None, tokens[:, :0], tokens, (images.shape[-2], images.shape[-1]))

    return features


def images_of(masks: Tensor) -> Tensor:
    return masks[:, None].float().expand(-1, 3, -1, -1)


def memory_of(num_classes: int, rename=lambda labels: labels, unlabelled="left_out") -> Memory:
    masks = torch.randint(num_classes, (4, 23, 19), generator=torch.Generator().manual_seed(5))
    features = reads_labels(num_classes)(images_of(masks))
    labels = Labels(tuple(map(str, range(num_classes))), IGNORE, unlabelled)
    return remember(features, labels.remembered(rename(masks)), len(labels.names))


def score(memory: Memory, config: HummingbirdConfig, num_classes: int, masks: list[Tensor], truths: list[Tensor]):
    labels = Labels(tuple(map(str, range(num_classes))), IGNORE, config.unlabelled)
    loader = [(images_of(mask[None]), truth[None]) for mask, truth in zip(masks, truths, strict=True)]
    search = make_search(config.backend, memory.features)
    return evaluate_hummingbird(reads_labels(num_classes), search, memory.labels, loader, labels, config)


def random_masks(num_classes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(num_classes, size, generator=generator) for size in ((71, 67), (53, 89), (101, 31))]


@pytest.mark.parametrize("config", [PLAIN, AUTHORS])
def test_perfect_features_score_one_and_shuffled_labels_score_chance(config: HummingbirdConfig) -> None:
    masks = random_masks(4)
    scores, per_class = score(memory_of(4), config, 4, masks, masks)
    assert scores["miou"] == scores["pixel_accuracy"] == 1.0
    assert per_class == dict.fromkeys("0123", 1.0)
    shuffled = [mask.flatten()[torch.randperm(mask.numel())].view_as(mask) for mask in masks]
    scores, _ = score(memory_of(4), config, 4, masks, shuffled)
    # two independent uniform labels meet in 1/4 of the pixels: p^2 / (2p - p^2) = 1/7
    assert scores["pixel_accuracy"] == pytest.approx(1 / 4, abs=0.02)
    assert scores["miou"] == pytest.approx(1 / 7, abs=0.02)


def test_votes_are_resized_to_the_mask() -> None:
    stripes = torch.tensor([0, 0, 1, 2, 2, 1]).expand(4, 6)
    truth = stripes.repeat_interleave(5, dim=0).repeat_interleave(8, dim=1)
    scores, _ = score(memory_of(3), PLAIN, 3, [stripes], [truth])
    assert scores["miou"] == scores["pixel_accuracy"] == 1.0


def test_renamed_classes_are_wrong_unless_they_are_matched() -> None:
    masks, memory = random_masks(4), memory_of(4, rename=lambda labels: (labels + 1) % 4)
    plain, _ = score(memory, PLAIN, 4, masks, masks)
    matched, per_class = score(memory, AUTHORS, 4, masks, masks)
    assert (plain["miou"], plain["pixel_accuracy"]) == (0.0, 0.0)
    assert (matched["miou"], matched["miou_unmatched"], matched["pixel_accuracy"]) == (1.0, 0.0, 1.0)
    assert per_class == dict.fromkeys("0123", 1.0)


def without_the_last(labels: Tensor) -> Tensor:
    return torch.where(labels == 3, IGNORE, labels)


def test_unlabelled_pixels_in_the_memory() -> None:
    """The fourth kind of patch has no label in the training images, nor in the truth."""
    masks = random_masks(4)
    truths = [without_the_last(mask) for mask in masks]

    def of(unlabelled, truths) -> tuple[dict[str, float], dict[str, float | None]]:
        config = HummingbirdConfig(
            neighbours=5, unlabelled=unlabelled, matching="identity", mean_over="all", measured_at="mask"
        )
        memory = memory_of(4, rename=without_the_last, unlabelled=unlabelled)
        return score(memory, config.resolved("folder", -1), 4, masks, truths)

    for unlabelled in ("left_out", "first_class", "extra_class"):
        scores, per_class = of(unlabelled, truths)
        assert scores["pixel_accuracy"] == 1.0  # patches without a label count nowhere
        assert [per_class[name] for name in "0123"] == [1.0, 1.0, 1.0, None]
        # the mean is over all: four classes, or five with the ignored one
        assert scores["miou"] == pytest.approx(3 / 5 if unlabelled == "extra_class" else 3 / 4)
    # where they do have a label in the truth, they are called class 0, or the class without a name
    scores, per_class = of("first_class", masks)
    pixels = [sum(int((mask == label).sum()) for mask in masks) for label in (0, 3)]
    assert per_class["0"] == pytest.approx(pixels[0] / sum(pixels))
    assert of("extra_class", masks)[1]["0"] == 1.0


def test_both_kinds_of_scores_agree_where_they_mean_the_same() -> None:
    names, generator = ("a", "b", "c", "d"), torch.Generator().manual_seed(0)
    truth = torch.randint(3, (5, 13, 17), generator=generator)
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.roll(1))
    truth[:, :2] = IGNORE
    one, other = (
        MatchedMetrics(names, IGNORE, matching="identity", mean_over="shown"),
        SegmentationMetrics(names, IGNORE),
    )
    for metrics in (one, other):
        for pair in zip(predicted.split(2), truth.split(2), strict=True):
            metrics.update(*pair)
    (mine, mine_by_class), (theirs, theirs_by_class) = one.compute(), other.compute()
    assert {name: theirs[name] for name in mine} == pytest.approx(mine)
    assert mine_by_class == pytest.approx(theirs_by_class)
    everything = MatchedMetrics(names, IGNORE, matching="identity", mean_over="all")
    everything.update(predicted, truth)
    assert everything.compute()[0]["miou"] == pytest.approx(mine["miou"] * 3 / 4)  # class d never shows


def test_matching_is_the_best_of_all_renamings() -> None:
    counts = torch.randint(50, (5, 5), generator=torch.Generator().manual_seed(2))

    def total(order: tuple[int, ...]) -> float:
        renamed = counts[:, list(order)].double()
        union = renamed.sum(dim=0) + renamed.sum(dim=1) - renamed.diagonal()
        return float((renamed.diagonal() / union).sum())

    best = max(itertools.permutations(range(5)), key=total)
    assert hungarian(counts).tolist() == list(best)
    assert best != tuple(range(5))


def test_scores_need_a_labelled_pixel_and_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MatchedMetrics(("a", "b"), IGNORE)
    metrics.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), IGNORE))
    with pytest.raises(LocAtError, match="no labelled pixel: the set is empty, or every pixel is ignore_index 255"):
        metrics.compute()
    with pytest.raises(LocAtError, match="a mask has the value 7; it must be a class, 0 to 1, or ignore_index 255"):
        metrics.update(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 7))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    labels = Labels(("a", "b"), IGNORE, "first_class")
    with pytest.raises(LocAtError, match=r"matching is 'hungarian', which needs scipy; install it \(pip install"):
        make_metrics(labels, AUTHORS)
    assert isinstance(make_metrics(labels, PLAIN), SegmentationMetrics)


def test_progress_and_batches_of_images() -> None:
    """Images of one size may come as a batch; the scores are those of single images."""
    masks = torch.randint(3, (6, 43, 41), generator=torch.Generator().manual_seed(8))
    truths = torch.where(torch.rand(masks.shape) < 0.7, masks, masks.roll(1))
    labels, memory, seen = Labels(("a", "b", "c"), IGNORE, "left_out"), memory_of(3), []
    search = make_search("torch", memory.features)

    def scores(size: int):
        loader = list(zip(images_of(masks).split(size), truths.split(size), strict=True))
        return evaluate_hummingbird(
            plain_reader, search, memory.labels, loader, labels, PLAIN, progress=lambda *now: seen.append(now)
        )

    def plain_reader(images: Tensor) -> Features:
        tokens = F.one_hot(images[:, 0].long(), 3).flatten(1, 2).float()
        return Features(None, tokens[:, :0], tokens, (43, 41))

    assert scores(1) == scores(4)
    assert seen == [(5, 6), (6, 6), (2, 2)]
