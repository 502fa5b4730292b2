"""A head as half precision computes it."""

import torch
from torch import nn

from dinov2rt.export.heads.rounding import rounded


def test_products_are_those_of_half_precision_and_the_weights_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).requires_grad_(False)
    image = torch.randn(1, 3, 8, 8, generator=generator)
    exact, weights = head(image), [each.clone() for each in head.parameters()]
    with rounded(head, torch.float16):
        half = head(image)
        assert torch.equal(half, half.half().float())
        assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=2e-3, atol=2e-3)
    for before, after in zip(weights, head.parameters(), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(head(image), exact)
