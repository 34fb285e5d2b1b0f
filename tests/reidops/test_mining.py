"""batch_hard and batch_hard_from_distance against the float64 reference."""

import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import DTYPES, LAYOUTS, gradients, integers, laid_out, random
from tests.tolerances import assert_gradient, assert_relative


def labels_for(count, identities, device):
    """Labels of a batch, shuffled, at least two different ones."""
    labels = integers(count, high=identities, device=device)
    labels[0], labels[-1] = 0, 1
    return labels


def assert_batch_hard(actual, expected):
    assert_relative(actual.positive_distance, expected.positive_distance)
    assert_relative(actual.negative_distance, expected.negative_distance)
    assert torch.equal(actual.positive_index.cpu(), expected.positive_index)
    assert torch.equal(actual.negative_index.cpu(), expected.negative_index)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "batch, width, identities",
    [(2, 1, 2), (5, 3, 2), (33, 128, 8), (64, 2048, 16), (130, 17, 9), (97, 1999, 9), (600, 24, 40)],
)
def test_batch_hard(batch, width, identities, dtype, normalize, device):
    features = random(batch, width, dtype=dtype, device=device)
    labels = labels_for(batch, identities, device)
    result = reidops.batch_hard(features, labels, normalize=normalize)
    assert isinstance(result, reidops.BatchHard)
    assert_batch_hard(result, reference.batch_hard(features, labels, normalize=normalize))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_hard_of_every_type(dtype, device):
    features, labels = random(40, 24, dtype=dtype, device=device), labels_for(40, 6, device)
    actual, expected = reidops.batch_hard(features, labels), reference.batch_hard(features, labels)
    assert_relative(actual.positive_distance, expected.positive_distance, dtype)
    assert_relative(actual.negative_distance, expected.negative_distance, dtype)


@pytest.mark.parametrize("width", range(1, 34))
def test_batch_hard_of_every_small_width(width, device):
    features, labels = random(19, width, device=device), labels_for(19, 4, device)
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, device):
    features = laid_out(random(30, 20, device=device), layout)
    labels = labels_for(60, 5, device)[::2]
    labels[-1] = 1
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))
    distance = laid_out(random(30, 30, device=device).abs(), layout)
    expected = reference.batch_hard_from_distance(distance, labels)
    assert_batch_hard(reidops.batch_hard_from_distance(distance, labels), expected)
    mine = gradients(lambda f: reidops.batch_hard(f, labels), features)
    for a, e in zip(mine, gradients(lambda f: reference.batch_hard(f, labels), features), strict=True):
        assert_gradient(a, e.cpu())


@pytest.mark.parametrize("integer", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(integer, device):
    features, labels = random(20, 6, device=device), labels_for(20, 4, device)
    assert_batch_hard(reidops.batch_hard(features, labels.to(integer)), reference.batch_hard(features, labels))


def test_labels_of_any_value(device):
    features = random(6, 4, device=device)
    labels = torch.tensor([-(2**62), 2**62, -1, -1, 2**62, -(2**62)], device=device)
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))


@pytest.mark.parametrize("high", [2, 3])
def test_ties_take_the_lowest_index(high, device):
    features = integers(70, 4, high=high, dtype=torch.float32, device=device)
    labels = labels_for(70, 5, device)
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))
    distance = integers(70, 70, high=high, dtype=torch.float32, device=device)
    expected = reference.batch_hard_from_distance(distance, labels)
    assert_batch_hard(reidops.batch_hard_from_distance(distance, labels), expected)


def test_duplicated_samples_tie(device):
    features = random(10, 37, device=device).repeat(4, 1)
    labels = labels_for(40, 3, device)
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))


def test_an_anchor_alone_is_its_own_positive(device):
    features = random(4, 8, device=device).requires_grad_()
    result = reidops.batch_hard(features, torch.arange(4, device=device))
    assert result.positive_index.tolist() == [0, 1, 2, 3]
    assert torch.equal(result.positive_distance, torch.zeros(4, device=device))
    result.positive_distance.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_nearly_equal_samples(device):
    features = random(1, 128, dtype=torch.float64) * (1 + 1e-4 * random(24, 128, seed=1, dtype=torch.float64))
    features, labels = features.float().to(device), labels_for(24, 4, device)
    assert_batch_hard(reidops.batch_hard(features, labels), reference.batch_hard(features, labels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_hard_from_distance(dtype, device):
    distance, labels = random(50, 50, dtype=dtype, device=device).abs(), labels_for(50, 7, device)
    expected = reference.batch_hard_from_distance(distance, labels)
    assert_batch_hard(reidops.batch_hard_from_distance(distance, labels), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient(dtype, normalize, device):
    features, labels = random(33, 65, dtype=dtype, device=device), labels_for(33, 6, device)
    (actual,) = gradients(lambda f: reidops.batch_hard(f, labels, normalize=normalize), features)
    (expected,) = gradients(lambda f: reference.batch_hard(f, labels, normalize=normalize), features)
    assert_gradient(actual, expected.cpu())
    distance = random(33, 33, dtype=dtype, device=device).abs()
    (actual,) = gradients(lambda d: reidops.batch_hard_from_distance(d, labels), distance)
    (expected,) = gradients(lambda d: reference.batch_hard_from_distance(d, labels), distance)
    assert_gradient(actual, expected.cpu())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_equal_samples_of_a_large_batch_tie(precision, device):
    if device.type != "cpu":
        pytest.skip("of cuBLAS it is not asked from which side a pair is made")
    half, labels = random(600, 256, device=device), labels_for(600, 40, device)
    mined = reidops.batch_hard(torch.cat([half, half]), torch.cat([labels, labels]), precision=precision)
    assert (mined.positive_index < 600).all() and (mined.negative_index < 600).all()
    for indices in mined[2:]:
        assert torch.equal(indices[:600], indices[600:])


@pytest.mark.parametrize("batch, width", [(2, 3), (8, 5), (700, 40)])
def test_an_anchor_without_a_negative_is_given_itself_when_nobody_looks(batch, width, device):
    features = random(batch, width, device=device)
    mined = reidops.batch_hard(features, torch.zeros(batch, dtype=torch.int64, device=device), validate=False)
    assert mined.negative_distance.isnan().all() and mined.positive_distance.isfinite().all()
    assert torch.equal(mined.negative_index.cpu(), torch.arange(batch))


@pytest.mark.parametrize("batch", [8, 512, 513])
@pytest.mark.parametrize("precision", [None, "highest"])
def test_values_too_large_are_refused_at_every_size(batch, precision, device):
    features = random(batch, 64, device=device)
    features[3, 5] = 2e18
    with pytest.raises(ValueError, match="features should be within"):
        reidops.batch_hard(features, labels_for(batch, 4, device), precision=precision, validate=True)


@pytest.mark.parametrize("used", ["positive_distance", "negative_distance"])
def test_gradient_of_one_result_only(used, device):
    features, labels = random(12, 9, device=device), labels_for(12, 3, device)
    (actual,) = gradients(lambda f: getattr(reidops.batch_hard(f, labels), used), features)
    (expected,) = gradients(lambda f: getattr(reference.batch_hard(f, labels), used), features)
    assert_gradient(actual, expected.cpu())


def test_gradcheck(device):
    features, labels = random(9, 5, dtype=torch.float64, device=device), labels_for(9, 3, device)
    for normalize in (False, True):
        assert torch.autograd.gradcheck(
            lambda f, normalize=normalize: reidops.batch_hard(f, labels, normalize=normalize)[:2],
            features.requires_grad_(),
        )
    distance = random(9, 9, dtype=torch.float64, device=device).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda d: reidops.batch_hard_from_distance(d, labels)[:2], distance)


def test_indices_carry_no_gradient(device):
    result = reidops.batch_hard(random(6, 4, device=device).requires_grad_(), labels_for(6, 2, device))
    assert result.positive_distance.requires_grad and result.negative_distance.requires_grad
    assert not result.positive_index.requires_grad and not result.negative_index.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_indices_stay_in_the_batch_when_nobody_looks_at_values(bad, device):
    features, labels = random(12, 9, device=device), labels_for(12, 3, device)
    features[4:] = bad
    features.requires_grad_()
    result = reidops.batch_hard(features, labels, validate=False)
    for index in (result.positive_index, result.negative_index):
        assert (index >= 0).all() and (index < 12).all()
    (result.positive_distance + result.negative_distance).sum().backward()
    assert features.grad.shape == features.shape
