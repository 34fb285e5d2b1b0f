"""What is composed of torch's own operators is device-agnostic code: run here on the CPU, whatever the machine has."""

import torch

from reidops import _composed, reference
from tests.tolerances import assert_relative


def test_composed_euclidean_distance():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(13, 40, generator=generator), torch.randn(7, 40, generator=generator)
    for squared in (False, True):
        expected = reference.euclidean_distance(x, y, squared=squared)
        assert_relative(_composed.euclidean_distance(x, y, squared), expected)


def test_composed_batch_hard():
    features = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) // 4
    expected = reference.batch_hard(features, labels)
    positive, negative, positive_index, negative_index = _composed.batch_hard(features, labels)
    assert_relative(positive, expected.positive_distance)
    assert_relative(negative, expected.negative_distance)
    assert torch.equal(positive_index, expected.positive_index)
    assert torch.equal(negative_index, expected.negative_index)


def test_composed_batch_hard_anchor_alone_is_its_own_positive():
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    positive, _, positive_index, _ = _composed.batch_hard(features, torch.tensor([0, 1, 2]))
    assert torch.equal(positive, torch.zeros(3))
    assert torch.equal(positive_index, torch.arange(3))
