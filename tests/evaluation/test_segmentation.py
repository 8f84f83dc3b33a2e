"""The segmentation protocol: head, loss, schedule and the score of a whole set."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.extract import accept_any_size, frozen_features
from locatvit.evaluation.segmentation import (
    SegmentationHead,
    build_optimizer,
    evaluate_segmentation,
    predict,
    segmentation_loss,
)
from locatvit.features import Features

IGNORE = 255


def random_features(width: int = 7, grid_size: tuple[int, int] = (3, 5), batch: int = 2) -> Features:
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(batch, grid_size[0] * grid_size[1], width, generator=generator)
    return Features(None, patches[:, :0], patches, grid_size)


def test_the_papers_head_has_the_parameters_counted_by_hand():
    head = SegmentationHead(embed_dim=192, num_classes=150)
    # 1x1 to 512 without bias; gain and bias of the norm; 1x1 to 150 with bias
    assert sum(p.numel() for p in head.parameters()) == 192 * 512 + 2 * 512 + 512 * 150 + 150


def test_the_heads_logits_by_hand():
    torch.manual_seed(0)
    head = SegmentationHead(embed_dim=7, num_classes=3, hidden_dim=11)
    first, norm, _, last = head.layers
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = random_features()
    hidden = features.patches @ first.weight.flatten(1).T
    mean = hidden.mean(dim=(1, 2), keepdim=True)
    variance = hidden.var(dim=(1, 2), keepdim=True, unbiased=False)
    hidden = (hidden - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = hidden @ last.weight.flatten(1).T + last.bias
    logits = head(features)
    assert logits.shape == (2, 3, 3, 5)
    torch.testing.assert_close(logits[:, :, 2, 1], expected[:, 2 * 5 + 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.flatten(2), expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_a_head_for_another_width_is_refused():
    with pytest.raises(LocAtError, match="patch tokens are 7 wide but the head reads embed_dim 8; build the head"):
        SegmentationHead(8, 3)(random_features(width=7))


def test_a_head_without_classes_is_refused():
    with pytest.raises(LocAtError, match="num_classes is 0; it must be at least 1"):
        SegmentationHead(8, 0)


def test_the_loss_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    head = SegmentationHead(7, 3, hidden_dim=11)
    features = random_features()
    mask = torch.randint(0, 3, (2, 19, 23))
    mask[:, :4] = IGNORE
    mask[0, :, :9] = IGNORE
    logits = F.interpolate(head(features), size=(19, 23), mode="bilinear", align_corners=False)
    log_likelihood = logits.log_softmax(dim=1).permute(0, 2, 3, 1)[mask != IGNORE]
    expected = -log_likelihood[torch.arange(len(log_likelihood)), mask[mask != IGNORE]].mean()
    torch.testing.assert_close(segmentation_loss(head, features, mask.to(torch.uint8), IGNORE), expected)


def test_a_batch_without_labels_moves_nothing():
    head = SegmentationHead(7, 3, hidden_dim=11)
    loss = segmentation_loss(head, random_features(), torch.full((2, 6, 10), IGNORE), IGNORE)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters())


def test_logits_are_resized_in_float32_under_autocast():
    torch.manual_seed(0)
    head = SegmentationHead(7, 3, hidden_dim=11)
    features, mask = random_features(), torch.randint(0, 3, (2, 19, 23))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features)
        loss = segmentation_loss(head, features, mask, IGNORE)
    assert logits.dtype == torch.bfloat16
    resized = F.interpolate(logits.float(), size=(19, 23), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss, F.cross_entropy(resized, mask), rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_classes", [3, 16, 37])
def test_predictions_are_the_argmax_of_the_resized_logits(num_classes):
    torch.manual_seed(0)
    head = SegmentationHead(7, num_classes, hidden_dim=11)
    features = random_features()
    with torch.no_grad():
        labels = predict(lambda images: features, head, torch.zeros(2, 3, 48, 80), (29, 41))
        logits = F.interpolate(head(features), size=(29, 41), mode="bilinear", align_corners=False)
    assert torch.equal(labels, logits.argmax(dim=1))
    assert labels.max() > 2 or num_classes == 3


class OneHot(nn.Module):
    """A head whose logits are the features."""

    def forward(self, features: Features) -> Tensor:
        return features.patch_map


def read_labels(num_classes: int):
    """A backbone that reads each pixel's label off the image: one patch a pixel."""

    def features(images: Tensor) -> Features:
        tokens = F.one_hot(images[:, 0].long(), num_classes).flatten(1, 2).float()
        return Features(None, tokens[:, :0], tokens, (images.shape[-2], images.shape[-1]))

    return features


def loader_of(masks: list[Tensor], truths: list[Tensor], scale: int) -> list[tuple[Tensor, Tensor]]:
    """Images that show ``masks`` enlarged, beside ``truths`` at their own size."""
    enlarge = nn.Upsample(scale_factor=scale, mode="nearest")
    return [
        (enlarge(mask[None, None].float()).expand(1, 3, -1, -1), truth[None])
        for mask, truth in zip(masks, truths, strict=True)
    ]


def random_masks(num_classes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, num_classes, size, generator=generator) for size in ((101, 67), (53, 89), (71, 71))]


def test_copied_labels_score_one_and_shuffled_ones_score_chance():
    masks, names = random_masks(4), ("a", "b", "c", "d")
    scores, per_class = evaluate_segmentation(read_labels(4), OneHot(), loader_of(masks, masks, 3), names, IGNORE)
    assert scores == {"miou": 1.0, "pixel_accuracy": 1.0, "boundary_iou": 1.0}
    assert per_class == dict.fromkeys(names, 1.0)
    shuffled = [mask.flatten()[torch.randperm(mask.numel())].view_as(mask) for mask in masks]
    scores, _ = evaluate_segmentation(read_labels(4), OneHot(), loader_of(masks, shuffled, 3), names, IGNORE)
    # two independent uniform labels meet in 1/4 of the pixels, so a class has p^2 / (2p - p^2) = 1/7
    assert scores["pixel_accuracy"] == pytest.approx(1 / 4, abs=0.02)
    assert scores["miou"] == pytest.approx(1 / 7, abs=0.015)


def test_labels_larger_than_the_patch_grid_are_filled():
    stripes = torch.tensor([0, 0, 1, 2, 2, 1]).expand(4, 6)
    label = stripes.repeat_interleave(5, dim=0).repeat_interleave(8, dim=1)
    loader = [(stripes[None, None].float().expand(1, 3, -1, -1), label[None])]
    scores, _ = evaluate_segmentation(read_labels(3), OneHot(), loader, ("a", "b", "c"), IGNORE)
    assert scores == {"miou": 1.0, "pixel_accuracy": 1.0, "boundary_iou": 1.0}


def test_an_image_without_labels_changes_no_score():
    masks = random_masks(3)
    truths = [mask.roll(1, dims=1) for mask in masks]
    loader = loader_of(masks, truths, 1)
    blank = (loader[0][0], torch.full_like(loader[0][1], IGNORE))
    names = ("a", "b", "c")
    expected = evaluate_segmentation(read_labels(3), OneHot(), loader, names, IGNORE)
    assert evaluate_segmentation(read_labels(3), OneHot(), [blank, *loader, blank], names, IGNORE) == expected
    with pytest.raises(LocAtError, match="no labelled pixel"):
        evaluate_segmentation(read_labels(3), OneHot(), [blank], names, IGNORE)
    with pytest.raises(LocAtError, match="the set is empty"):
        evaluate_segmentation(read_labels(3), OneHot(), [], names, IGNORE)


def test_progress_counts_batches():
    masks = random_masks(3)
    seen: list[tuple[int, int | None]] = []
    arguments = (("a", "b", "c"), IGNORE, "cpu", lambda done, total: seen.append((done, total)))
    loader = loader_of(masks, masks, 1)
    evaluate_segmentation(read_labels(3), OneHot(), loader, *arguments)
    evaluate_segmentation(read_labels(3), OneHot(), iter(loader), *arguments)
    assert seen == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None)]


def test_the_optimiser_decays_every_weight():
    head = SegmentationHead(7, 3, hidden_dim=11)
    (group,) = build_optimizer(head, SegmentationConfig()).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in head.parameters()}
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.01, (0.9, 0.999))


def colour_scene(size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Left of a random line one class and colour, right of it another; the top row carries no label."""
    pair = torch.randperm(3, generator=generator)[:2]
    line = 16 * int(torch.randint(1, size[1] // 16, (1,), generator=generator))
    mask = pair[0].repeat(size[0], size[1])
    mask[:, line:] = pair[1]
    image = F.one_hot(mask, 3).permute(2, 0, 1) * 2.0 - 1 + 0.1 * torch.randn(3, *size, generator=generator)
    mask[0] = IGNORE
    return image, mask


def test_a_head_learns_on_a_frozen_backbone_and_is_scored_at_other_sizes():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = accept_any_size(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    features_fn = frozen_features(model)
    config = SegmentationConfig(num_updates=60, batch_size=8, hidden_dim=64)
    head = SegmentationHead(192, 3, config.hidden_dim)
    optimizer = build_optimizer(head, config)
    losses = []
    for _ in range(config.num_updates):
        images, masks = map(torch.stack, zip(*(colour_scene((64, 64), generator) for _ in range(8)), strict=True))
        loss = segmentation_loss(head, features_fn(images), masks, IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    validation = []
    for size in ((64, 96), (80, 64), (64, 64)) * 4:
        image, mask = colour_scene(size, generator)
        label = mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        validation.append((image[None], label[None]))
    scores, per_class = evaluate_segmentation(features_fn, head, validation, ("r", "g", "b"), IGNORE)
    assert losses[0] > 0.8
    assert losses[-1] < 0.2
    assert scores["miou"] > 0.85
    assert set(per_class) == {"r", "g", "b"}
    assert head.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
