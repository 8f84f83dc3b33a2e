"""Windows: where they lie, that their logits are averaged, and that of one window nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locatvit.errors import LocAtError
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.heads import LinearHead, SegmentationHead, build_head
from locatvit.evaluation.segmentation import build_optimizer, predict, ramped_schedule
from locatvit.evaluation.sliding import label_map, see, windows_of
from locatvit.features import Features


def slide(size: int, stride: int) -> SegmentationConfig:
    return SegmentationConfig("linear", window_size=size, window_stride=stride)


def patch_means(images: Tensor) -> Features:
    """Mean colour of every 4x4 patch; it depends on nothing outside of the patch."""
    means = F.avg_pool2d(images, 4)
    patches = means.flatten(2).transpose(1, 2)
    return Features(None, patches[:, :0], patches, (means.shape[-2], means.shape[-1]))


class Colours(nn.Module):
    """A head whose logits are the features."""

    def forward(self, features: Features) -> Tensor:
        return features.patch_map


def test_windows_of_published_sizes_by_hand():
    config = SegmentationConfig("linear")
    assert windows_of((512, 512), config) == ((0, 0, 512, 512),)
    assert windows_of((512, 683), config) == ((0, 0, 512, 512), (0, 171, 512, 512))
    assert [window[:2] for window in windows_of((512, 900), config)] == [(0, 0), (0, 341), (0, 388)]
    assert windows_of((205, 2048), config)[-1] == (0, 1536, 205, 512)
    assert windows_of((512, 683), SegmentationConfig("locat")) == ((0, 0, 512, 683),)


@pytest.mark.parametrize("size", [(7, 7), (7, 23), (30, 11), (23, 29), (8, 8)])
@pytest.mark.parametrize(("window", "stride"), [(7, 7), (7, 3), (8, 5), (40, 1)])
def test_windows_have_one_size_lie_inside_and_cover_all(size, window, stride):
    covered = np.zeros(size, dtype=int)
    places = windows_of(size, slide(window, stride))
    for top, left, height, width in places:
        assert (height, width) == (min(window, size[0]), min(window, size[1]))
        assert top + height <= size[0]
        assert left + width <= size[1]
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1
    assert len(set(places)) == len(places)


def test_logits_are_averaged_where_windows_overlap():
    torch.manual_seed(0)
    images = torch.randn(2, 5, 12, 28)
    config = slide(12, 8)
    labels = predict(patch_means, Colours(), images, (12, 28), config)
    total, count = torch.zeros(2, 5, 12, 28), torch.zeros(28)
    for left in (0, 8, 16):
        part = F.avg_pool2d(images[..., left : left + 12], 4)
        total[..., left : left + 12] += F.interpolate(part, size=(12, 12), mode="bilinear", align_corners=False)
        count[left : left + 12] += 1
    assert count.tolist() == [1] * 8 + [2] * 4 + [1] * 4 + [2] * 4 + [1] * 8
    assert torch.equal(labels, (total / count).argmax(dim=1))
    whole = predict(patch_means, Colours(), images, (12, 28))
    assert not torch.equal(labels, whole), "the edges of windows differ from the middle of an image"


def test_one_window_is_the_whole_image():
    torch.manual_seed(0)
    images = torch.randn(2, 5, 12, 28)
    whole = predict(patch_means, Colours(), images, (31, 45))
    assert torch.equal(predict(patch_means, Colours(), images, (31, 45), slide(28, 28)), whole)


@pytest.mark.parametrize("num_classes", [3, 16, 37])
def test_the_map_is_resized_after_it_is_joined(num_classes):
    torch.manual_seed(0)
    images = torch.randn(1, num_classes, 24, 20)
    seen = see(patch_means, images, slide(16, 12))
    assert seen.features.patches.shape == (4, 16, num_classes)
    assert label_map(Colours(), seen, (50, 41)).shape == (1, 50, 41)
    total, count = torch.zeros(1, num_classes, 24, 20), torch.zeros(24, 20)
    for top in (0, 8):
        for left in (0, 4):
            part = F.avg_pool2d(images[..., top : top + 16, left : left + 16], 4)
            grown = F.interpolate(part, size=(16, 16), mode="bilinear", align_corners=False)
            total[..., top : top + 16, left : left + 16] += grown
            count[top : top + 16, left : left + 16] += 1
    resized = F.interpolate(total / count, size=(50, 41), mode="bilinear", align_corners=False)
    assert torch.equal(label_map(Colours(), seen, (50, 41)), resized.argmax(dim=1))


def test_the_linear_head_is_batch_norm_and_one_product():
    torch.manual_seed(0)
    head = LinearHead(6, 3)
    nn.init.normal_(head.layers[0].weight)
    nn.init.normal_(head.layers[0].bias)
    patches = 5 + 3 * torch.randn(4, 10, 6)
    features = Features(None, patches[:, :0], patches, (2, 5))
    tokens = patches.flatten(0, 1)
    normed = (tokens - tokens.mean(0)) / (tokens.var(0, unbiased=False) + 1e-5).sqrt()
    normed = normed * head.layers[0].weight + head.layers[0].bias
    expected = normed @ head.layers[2].weight.flatten(1).T + head.layers[2].bias
    logits = head(features)
    torch.testing.assert_close(logits.permute(0, 2, 3, 1).flatten(0, 2), expected, rtol=1e-4, atol=1e-5)
    # a test image is normed by the training's statistics, not by its own
    head.eval()
    alone = head(Features(None, patches[:1, :0], patches[:1], (2, 5)))
    torch.testing.assert_close(alone, head(features)[:1])
    assert not torch.allclose(alone, logits[:1])


def test_the_head_follows_the_protocol():
    assert sum(p.numel() for p in build_head(SegmentationConfig("linear"), 192, 150).parameters()) == (
        2 * 192 + 192 * 150 + 150
    )
    locat = build_head(SegmentationConfig(hidden_dim=64), 192, 150)
    assert isinstance(locat, SegmentationHead)
    assert locat.layers[0].weight.shape == (64, 192, 1, 1)
    assert build_head(SegmentationConfig("linear", dropout=0.25), 192, 150).layers[1].p == 0.25
    with pytest.raises(LocAtError, match="num_classes is 0; it must be at least 1"):
        build_head(SegmentationConfig("linear"), 192, 0)


def test_the_linear_protocols_learning_rate_by_hand():
    config = SegmentationConfig("linear", num_updates=400)
    optimizer = build_optimizer(LinearHead(2, 2), config)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    schedule, rates = ramped_schedule(optimizer, config), []
    for _ in range(400):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # 15 updates of warm-up, from a millionth
    assert rates[0] == pytest.approx(1e-9)
    assert rates[5] == pytest.approx(1e-3 * (1e-6 + (1 - 1e-6) * 5 / 15) * (1 - 5 / 400))
    assert rates[15] == pytest.approx(1e-3 * (1 - 15 / 400))
    assert rates[200] == pytest.approx(0.5e-3)
    assert rates[399] == pytest.approx(1e-3 / 400)
    assert optimizer.param_groups[0]["lr"] == 0
