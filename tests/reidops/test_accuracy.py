"""Where the usual formulas lose their digits: near rows, close pairs, large scores; and NaN past the checks."""

import warnings

import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import random
from tests.tolerances import assert_gradient, assert_relative


def alike(rows, depth, noise, seed=0):
    """Normalised features after a ReLU: positive, and close to one another (a small noise makes cosines near 1)."""
    shape = random(1, depth, seed=seed).abs() + 0.5
    return torch.nn.functional.normalize((shape + noise * random(rows, depth, seed=seed + 1)).relu(), dim=-1)


@pytest.mark.parametrize("depth", [3, 64, 257, 2048])
@pytest.mark.parametrize("noise", [0.03, 0.1, 0.2, 0.4])
def test_features_close_to_one_another(depth, noise, device):
    x, y = alike(60, depth, noise).to(device), alike(90, depth, noise, seed=5).to(device)
    assert_relative(
        reidops.euclidean_distance(x, y, squared=True), reference.euclidean_distance(x.cpu(), y.cpu(), squared=True)
    )
    nearest = reidops.knn(x, y, 5)
    assert_relative(nearest.distance, reference.euclidean_distance(x, y, squared=True).gather(1, nearest.index.cpu()))
    assert_relative(reidops.dmli_matrix(x[:, None], y[:, None]), reference.dmli_matrix(x[:, None], y[:, None]))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 2e-19, 1e-12, 1e12, 1e16])
def test_features_of_any_scale(scale, device):
    """Whatever products get lost: to the last distance whose square is a normal number."""
    x, y = scale * random(40, 70).to(device), scale * random(300, 70, seed=1).to(device)
    if scale > 1e-19:
        found = reidops.knn(x, y, 20)
        exact = reference.euclidean_distance(x, y, squared=True).gather(1, found.index.cpu())
        assert_relative(found.distance, exact)
    if 1e-19 < scale < 1e-10:  # beyond it the stripe distance is 1 anyway
        assert_relative(reidops.dmli_matrix(x[:, None], y[:, None]), reference.dmli_matrix(x[:, None], y[:, None]))


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-19, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("value_length", [30, 3])
def test_attention_to_values_of_any_scale(value_length, scale, device):
    query, key = random(2, 40, 30).to(device), random(2, 40, 30, seed=1).to(device)
    value = scale * torch.nn.functional.normalize(random(2, 40, value_length, seed=2), dim=1).to(device)
    result = reidops.channel_attention(query, key, value)
    assert_relative(result, reference.channel_attention(query, key, value), relative_to="largest")


@pytest.mark.parametrize("factor", [1.05, 1.2, 1.5])
def test_proportional_rows(factor, device):
    x = random(200, 64, seed=1).abs().to(device)
    distance = reidops.euclidean_distance(x, factor * x, squared=True)
    assert_relative(distance, reference.euclidean_distance(x, factor * x, squared=True))


def test_the_same_distance_from_either_side_and_between_equal_rows(device):
    x, y = alike(37, 300, 0.1).to(device), alike(70, 300, 0.1, seed=4).to(device)
    y[50] = y[3]
    distance = reidops.euclidean_distance(x, y)
    if device.type == "cpu":  # cuBLAS may add in another order from the other side
        assert torch.equal(distance, reidops.euclidean_distance(y, x).mT)
    assert_relative(distance, reidops.euclidean_distance(y, x).mT.cpu().double())
    assert torch.equal(distance[:, 50], distance[:, 3])
    assert torch.equal(reidops.euclidean_distance(x, x).diagonal(), torch.zeros(37, device=device))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.3])
def test_gradient_of_close_pairs(noise, squared, device):
    x = random(70, 128).to(device).requires_grad_()
    y = (x.detach() + noise * random(70, 128, seed=1).to(device)).requires_grad_()
    weight = torch.eye(70) + 1e-3 * random(70, 70, seed=2)
    actual = torch.autograd.grad((weight.to(device) * reidops.euclidean_distance(x, y, squared=squared)).sum(), (x, y))
    wide = [values.detach().cpu().double().requires_grad_() for values in (x, y)]
    expected = torch.autograd.grad((weight.double() * reference.euclidean_distance(*wide, squared=squared)).sum(), wide)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_gradient(gradient, wanted)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("value_length", [128, 3])
def test_gradient_of_channel_attention_with_large_equal_scores(value_length, scale, device):
    query = torch.full((1, 64, 128), scale, device=device).requires_grad_()
    value, grad = (random(1, 64, value_length, seed=s).to(device) for s in range(2))
    value.requires_grad_()
    output = reidops.channel_attention(query, query.detach(), value)
    (actual,) = torch.autograd.grad(output, value, grad)
    wide = value.detach().cpu().double().requires_grad_()
    expected = reference.channel_attention(query.detach(), query.detach(), wide)
    assert_gradient(actual, torch.autograd.grad(expected, wide, grad.cpu().double())[0])


@pytest.mark.parametrize("protocol", ["market1501", "mudeep", "cuhk03"])
def test_nan_distances_past_the_checks_rank_last(protocol):
    ids, gallery_ids = torch.tensor([0, 1]), torch.tensor([0, 1, 2, 0])
    distance = torch.tensor([[0.3, 0.1, 0.2, float("nan")], [float("nan")] * 4])
    arguments = (ids, gallery_ids, None, None, 50, protocol, 5, 0)
    actual = torch.ops.reidops.rank_metrics(distance, *arguments)
    expected = torch.ops.reidops.rank_metrics(distance.nan_to_num(torch.inf), *arguments)
    for scores, wanted in zip(actual, expected, strict=True):
        assert torch.equal(scores, wanted)
    compiled = torch.compile(lambda d: reidops.rank_metrics(d, ids, gallery_ids), backend="eager", fullgraph=True)
    assert 0 <= compiled(torch.full((2, 4), float("nan"))).mean_ap <= 1


def test_a_training_step_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features, stripes = random(8, 16).requires_grad_(), random(8, 4, 6).requires_grad_()
        losses = reidops.losses.AlignedTripletLoss()(features, stripes, torch.arange(8) // 2)
        sum(losses).backward()


def test_many_neighbours_of_many_points():
    """Sets of hundreds: k1 and k2 far beyond their usual values."""
    images = random(220, 8, dtype=torch.float64)
    actual = reidops.k_reciprocal(images[:20], images[20:], k1=150, k2=90)
    expected = reference.k_reciprocal(images[:20], images[20:], k1=150, k2=90)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
