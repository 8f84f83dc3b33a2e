"""Exported programs: any batch, and none of this package's operators in them."""

import pytest
import torch

from small_models import NAMES, image_size, small


@pytest.mark.parametrize("name", NAMES)
def test_a_program_takes_any_batch_and_runs_without_this_package(name):
    model, size = small(name).eval(), image_size(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, size, size),), dynamic_shapes=({0: batch},))
    assert not [node for node in program.graph.nodes if "locatvit" in str(node.target)]
    for count in (1, 5):
        images = torch.randn(count, 3, size, size)
        torch.testing.assert_close(program.module()(images), model(images))
