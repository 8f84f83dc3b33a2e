"""Dense retrieval: a patch takes the labels of the nearest patches of the training images. Nothing is trained.

Balazevic et al., "Towards In-context Scene Understanding", NeurIPS 2023 (Hummingbird). With unit vectors q of a query
patch and k_1 ... k_n of its n nearest patches in the memory, which have shares of the classes y_1 ... y_n::

    y = Σ_i w_i y_i ,   w = softmax(q · k_i / temperature)

The map of y is resized bilinearly to the mask, and each pixel gets its largest class. ``recipes`` joins the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Protocol

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from locatvit.evaluation.extract import FeaturesFn
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.evaluation.matching import MatchedMetrics
from locatvit.evaluation.metrics import SegmentationMetrics, SegmentationScores
from locatvit.evaluation.nearest import Neighbours
from locatvit.evaluation.patch_memory import Labels, unit
from locatvit.evaluation.retrieval import SearchFn
from locatvit.evaluation.sliding import Seen, label_map
from locatvit.features import Features

# patches that are searched at a time, and whose neighbours' labels are gathered at a time
_QUERIES, _VOTES = 8192, 1024


class Metrics(Protocol):
    """What counts pixels."""

    def update(self, predicted: Integer[Tensor, "B H W"], truth: Integer[Tensor, "B H W"]) -> None: ...

    def compute(self) -> SegmentationScores: ...


def make_metrics(labels: Labels, config: HummingbirdConfig, device: torch.device | str = "cpu") -> Metrics:
    """What the configuration counts with: as segmentation does, unless classes are matched or all are averaged.

    Args:
        config: resolved.

    Raises:
        LocAtError: Hungarian matching without scipy.
    """
    names, ignored = labels.names, labels.ignored_truth
    if (config.matching, config.mean_over) == ("identity", "shown"):
        return SegmentationMetrics(names, ignored, device=device)
    assert config.matching is not None
    assert config.mean_over is not None
    return MatchedMetrics(names, ignored, matching=config.matching, mean_over=config.mean_over, device=device)


def vote(neighbours: Neighbours, labels: Float[Tensor, "M C"], temperature: float) -> Float[Tensor, "Q C"]:
    """The neighbours' shares of the classes, weighted by the softmax of their cosines over the temperature.

    Args:
        neighbours: of each query; scores are cosines.
        labels: the memory's.
        temperature: > 0.
    """
    weights = (neighbours.scores.to(labels.device) / temperature).softmax(dim=1)
    indices = neighbours.indices.to(labels.device)
    # a few queries at a time: the labels of all their neighbours are k times as many
    parts = zip(weights.split(_VOTES), indices.split(_VOTES), strict=True)
    return torch.cat([torch.einsum("qk,qkc->qc", weight, labels[index]) for weight, index in parts])


def vote_map(votes: Float[Tensor, "N C"], grid_size: tuple[int, int], size: Sequence[int]) -> Int64[Tensor, "H W"]:
    """The largest class of every pixel of one image, of votes resized bilinearly.

    Args:
        votes: of its patches, row-major.
        grid_size: (height, width) in patches.
        size: (H, W) of the mask.
    """
    whole = (size[0], size[1])
    seen = Seen(Features(None, votes[None, :0], votes[None], grid_size), ((0, 0, *whole),), whole)
    return label_map(_Votes(), seen, whole)[0]


class _Votes(nn.Module):
    """In the place of a head: what are features to it are logits as they are."""

    def forward(self, features: Features) -> Float[Tensor, "B C h w"]:
        return features.patch_map


def evaluate_hummingbird(
    features_fn: FeaturesFn,
    search: SearchFn,
    memory_labels: Float[Tensor, "M C"],
    loader: Iterable[tuple[Tensor, Tensor]],
    labels: Labels,
    config: HummingbirdConfig,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int | None], None] | None = None,
) -> SegmentationScores:
    """The scores of the whole of ``loader``.

    Args:
        features_fn: gives the backbone's features, e.g. ``frozen_features(model)``.
        search: in the memory's features, see ``make_search``.
        memory_labels: of the same patches.
        loader: (images ``[B, 3, height, width]``, masks ``[B, H, W]``), each mask at the size that counts.
        labels: how masks are read.
        config: resolved.
        device: where images are brought; the model must be there.
        progress: called with the batches done and, where the loader knows it, their number.

    Raises:
        LocAtError: no labelled pixel in the set, or a mask's value that is no class.
    """
    metrics, total = make_metrics(labels, config), len(loader) if isinstance(loader, Sized) else None
    for done, images in _gathered(features_fn, loader, torch.device(device)):
        queries = unit(torch.cat([features.patches.flatten(0, 1) for features, _ in images]))
        votes = vote(search(queries, config.neighbours), memory_labels, config.temperature)
        sizes = [features.patches.shape[0] * features.patches.shape[1] for features, _ in images]
        for (features, masks), voted in zip(images, votes.split(sizes), strict=True):
            for mask, own in zip(masks, voted.split(features.patches.shape[1]), strict=True):
                predicted = vote_map(own, features.grid_size, mask.shape)
                metrics.update(predicted[None].cpu(), labels.truth(mask)[None])
        if progress is not None:
            progress(done, total)
    return metrics.compute()


def _gathered(
    features_fn: FeaturesFn, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[int, list[tuple[Features, Tensor]]]]:
    """Batches done, and their features and masks: as many as make a search worth its while."""
    held: list[tuple[Features, Tensor]] = []
    done = 0
    for done, (images, masks) in enumerate(loader, start=1):
        held.append((features_fn(images.to(device)), masks))
        if sum(features.patches.shape[:2].numel() for features, _ in held) >= _QUERIES:
            yield done, held
            held = []
    if held:
        yield done, held
